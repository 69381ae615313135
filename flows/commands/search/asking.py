"""Asks a captioner about the hits of a search, on the features that a caption run stored.

How it works:

1. The folder of the run names its command, and so the model and the keys of all features. The index
   has the digest of each hit's file. So no medium is opened, and no tower is loaded.
2. Each hit is shown as the frames of its own span, at most as many as a chunk has: a window, which
   is cut out of the features of one chunk or of neighbouring ones.
3. The answer to a window is a record like any other. Its key has the features and the frames, and
   the question, so a second search with the same question computes nothing.
4. To refine a hit, the question is put about narrow windows around it. The moment is where they say
   yes, and goes on into the next chunk while its last frames do.
"""

import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import NamedTuple

from artifacts.digests import digest_of
from artifacts.disk.files import encoded
from artifacts.disk.paths import folder_named
from artifacts.errors import UsageError
from artifacts.schema import MediaKind
from artifacts.texts.questions import Question, answer_of, read_questions
from artifacts.tiles import OFF
from artifacts.wording import counted
from flows.commands.ask import ANSWER
from flows.commands.ask.run import check
from flows.commands.search.query import Hit, is_image_query
from flows.commands.shared.arguments import recorded_run
from flows.core.console.display import Display
from flows.core.job.prepare import Job
from flows.core.job.replan import replanned_once
from flows.core.ledger.tasks import Medium, Task
from flows.core.machine.launch import DirectLauncher
from flows.core.options.answers import questions_in
from flows.core.options.hit_questions import AskHitsOptions
from flows.core.options.questions import AskConfig
from flows.core.options.training import CommandRecord
from flows.execution.pipeline_runner import PipelineRunner
from flows.execution.run import prepared
from flows.execution.run_observer import RunObserver
from flows.outputs.folder.trust import command_in
from stages.answer import WINDOWED, AnswerItem, Window, WindowChunk

SEEN = "Is {} seen in this part?"
"""The question where none is given."""
NARROW, STRIDE = 4, 2
"""Frames of a window that refines, and from one to the next."""
LEAST_FRAMES = 4
"""Fewest frames of a window, if the film has them: one or two are little to see a change in."""
SURE = 0.5
"""Probability from which on a narrow window says yes."""
OWN = frozenset(
    {
        *("sources", "out", "format", "replace", "retry_failed", "check_media"),
        *("questions", "question", "keep", "decisions"),
    }
)
"""Options of a caption run that are not those of its features."""


class HitAnswer(NamedTuple):
    """What the answer to a question says about a text."""

    p: float
    mass: float


@dataclass(frozen=True, kw_only=True, slots=True)
class HitQuestion:
    """A question about windows, and which of its labels stand for the searched text."""

    question: Question
    chosen: tuple[int, ...] = ()
    """Positions of the labels that have the text; empty: a question of yes or no."""
    orders: bool = False
    """Whether it is about more than the searched text, by which the index has ordered the hits."""

    def answer(self, scores: Sequence[float]) -> HitAnswer:
        """Return the answer from the log probability of each label. That of labels is their share
        of all that the model might say: those of a window that shows another thing are improbable,
        and which of them is the least improbable says nothing."""
        answer = answer_of(self.question, [scores])
        if not self.chosen:
            return HitAnswer(answer.p or 0.0, answer.mass)
        return HitAnswer(round(sum(math.exp(scores[at]) for at in self.chosen), 6), answer.mass)


def question_for(text: str, given: str, label: str) -> HitQuestion:
    """Return the question about the hits of a text. Of labels, those with `label` in them count,
    or with the text itself. Raises UsageError."""
    if not given:
        if is_image_query(text):
            raise UsageError(
                f"--ask: {text} is an image, and the question needs words",
                hint="Give --questions with a question of yes or no, or search for a text",
            )
        (question,) = read_questions(encoded({"seen": SEEN.format(text)}), "the searched text")
        return HitQuestion(question=question)
    question, *others = questions_in(given, {})
    if others or question.type not in ("yes-no", "labels"):
        raise UsageError(
            "--questions: a search asks one question of yes or no, or with labels",
            hint='Write one table: [seen] and text = "Is there a car?"',
        )
    if question.type == "yes-no":
        return HitQuestion(question=question, orders=True)
    words = (label or text).casefold()
    chosen = [at for at, one in enumerate(question.labels) if words in one.casefold()]
    if not chosen:
        raise UsageError(
            f"--questions: no label of {question.name} has the text {label or text!r}",
            hint="Give --label words that stand in the labels, in their order",
        )
    return HitQuestion(question=question, chosen=tuple(chosen), orders=bool(label))


class FilmFrames:
    """The frames of a video of which features are stored, in one row over all its chunks."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = tasks
        self.times = [time for task in tasks for time in task.chunk.times]
        self.longest = max(len(task.chunk.times) for task in tasks)
        self._firsts = [0]
        for task in tasks:
            self._firsts.append(self._firsts[-1] + len(task.chunk.times))

    def frames(self, start: float, end: float) -> tuple[int, int]:
        """Return the first frame of a span and the one after its last, LEAST_FRAMES at least, and
        no more than a chunk has."""
        first = sum(time < start for time in self.times)
        last = max(sum(time < end for time in self.times), first + LEAST_FRAMES)
        last = min(last, first + self.longest, len(self.times))
        return max(0, min(first, last - LEAST_FRAMES)), last

    def chunks_of(self, first: int, last: int) -> range:
        """Return the positions of the chunks of some frames."""
        at = [n for n in range(len(self.tasks)) if self._firsts[n] < last]
        return range(sum(end <= first for end in self._firsts[1:]), at[-1] + 1)

    def frames_of(self, chunk: int) -> tuple[int, int]:
        return self._firsts[chunk], self._firsts[chunk + 1]

    def window(self, first: int, last: int) -> Window:
        """Return the window of some frames. A chunk with an odd number of frames is not joined,
        since a tower that reads pairs has repeated one: then the first chunk alone is shown."""
        chunks = self.chunks_of(first, last)
        if any(len(self.tasks[at].chunk.times) % 2 for at in chunks[:-1]):
            chunks, last = chunks[:1], min(last, self._firsts[chunks[0] + 1])
        origin = self._firsts[chunks[0]]
        parts = [_chunk_of(self.tasks[at]) for at in chunks]
        return Window(tuple(parts), first - origin, last - origin)

    def time_of(self, frame: int) -> float:
        """Return when a frame is seen; that behind the last one is the end."""
        return self.times[frame] if frame < len(self.times) else self.tasks[-1].chunk.end


def _chunk_of(task: Task) -> WindowChunk:
    chunk = task.chunk
    times = tuple(round(time - chunk.start, 6) for time in chunk.times)
    seconds = chunk.end - chunk.start
    return WindowChunk(task["features"], times, seconds, chunk.height, chunk.width)


class HitAnswers:
    """The answers about parts of films, computed unless they are stored."""

    def __init__(self, job: Job, runner: PipelineRunner, question: HitQuestion) -> None:
        self._job, self._runner, self._question = job, runner, question
        (self._probe,) = question.question.probes
        self._films: dict[str, FilmFrames | None] = {}

    def film(self, hit: Hit) -> FilmFrames | None:
        """Return the chunks of a hit's file; None if not all that were cut have features."""
        if hit.digest not in self._films:
            kind: MediaKind = "image" if hit.time is None else "video"
            medium = Medium(digest=hit.digest, path=hit.path, kind=kind, prompt=self._probe.text)
            ledger = self._job.ledger
            tasks = ledger.tasks([medium])
            whole = bool(tasks) and all(task["features"] in ledger["features"] for task in tasks)
            self._films[hit.digest] = FilmFrames(tasks) if whole else None
        return self._films[hit.digest]

    def probe(self, film: FilmFrames, first: int, last: int) -> AnswerItem:
        """Return the probe about some frames."""
        if film.tasks[0].medium.kind == "image":
            window, named = None, [film.tasks[0]["features"]]
        else:
            window = film.window(first, last)
            named = [chunk.features for chunk in window.chunks]
        span = "" if window is None else f"{window.first}-{window.last}"
        key = digest_of(["window", *named, span, self._probe.text])
        own = self._probe
        return AnswerItem(key, named[0], own.prompt, own.labels, window=window)

    def make(self, items: Iterable[tuple[FilmFrames, AnswerItem]]) -> None:
        """Compute what is missing. Raises PenstockError."""
        missing: dict[str, dict[str, tuple[Task, AnswerItem]]] = {}
        for film, probe in items:
            if probe.key not in self._job.ledger["answers"]:
                task = film.tasks[0]
                missing.setdefault(task.variant["features"], {})[probe.key] = (task, probe)
        for of_variant in missing.values():
            task = next(iter(of_variant.values()))[0]
            self._runner.answer([probe for _, probe in of_variant.values()], task.variant)

    def __getitem__(self, probe: AnswerItem) -> HitAnswer | None:
        """Return an answer; None if it failed."""
        kept = self._job.ledger["answers"]
        return self._question.answer(kept.meta(probe.key)["scores"]) if probe.key in kept else None


def ask_hits(
    hits: Sequence[Hit], text: str, request: AskHitsOptions, store: str, display: Display
) -> list[Hit]:
    """Return the hits with answers: where the question says more than the text, the most probable
    first, and those without an answer last. Raises PenstockError."""
    question = question_for(text, request.questions, request.label)
    folder = folder_named(request.ask, "ask").absolute()
    command = command_in(folder, store, trust=request.trust_folder)
    with chdir(command.folder), tempfile.TemporaryDirectory(prefix="penstock-search-") as out:
        config, observer = _config_of(command, question, out), RunObserver(display)

        def attempt() -> list[Hit]:
            with prepared(config, observer, DirectLauncher, ANSWER) as (job, launcher):
                check((question.question,), job)
                _check_windows(job)
                with observer.pipeline_for_job(job, launcher, "asking in", outputs={}) as runner:
                    answers = HitAnswers(job, runner, question)
                    return _answered(answers, hits, request.ask, refine=request.refine)

        answered = replanned_once(attempt, display.print_line)
    kept = [hit for hit in answered if (hit.p or 0.0) >= request.least]
    if question.orders:
        kept.sort(key=lambda hit: -1.0 if hit.p is None else hit.p, reverse=True)
    return [replace(hit, rank=rank) for rank, hit in enumerate(kept, 1)]


def _config_of(command: CommandRecord, question: HitQuestion, out: str) -> AskConfig:
    """Return the configuration that reads the features of a caption run. Raises UsageError."""
    run, names = recorded_run(command).config, {field.name for field in fields(AskConfig)} - OWN
    shared = {n.name: getattr(run, n.name) for n in fields(run) if n.name in names}
    own = {question.question.name: question.question.to_json()}
    # The sound of a part is not cut out.
    shared |= {"sound": OFF, "sound_track": None, "questions": encoded(own)}
    return AskConfig(sources=(), out=out, **shared)


def _answered(answers: HitAnswers, hits: Sequence[Hit], folder: str, *, refine: bool) -> list[Hit]:
    """Return the hits with their answers, in the same order. Raises PenstockError."""
    films = {hit: film for hit in hits if (film := answers.film(hit)) is not None}
    if hits and not films:
        raise UsageError(
            f"the store has no features of {counted(len(hits), 'hit')} as cut for {folder}",
            hint="Caption the same media again; what is stored is not computed twice",
        )
    probes = {hit: answers.probe(film, *_frames(film, hit)) for hit, film in films.items()}
    answers.make((films[hit], probe) for hit, probe in probes.items())
    made = {hit: answers[probe] for hit, probe in probes.items()}
    spans = _refined(answers, films, made) if refine else {}
    return [
        replace(hit, p=answer.p, mass=answer.mass, time=spans.get(hit, hit.time))
        if (answer := made.get(hit)) is not None
        else hit
        for hit in hits
    ]


def _check_windows(job: Job) -> None:
    """Raise UsageError for a model whose features cannot be cut by time."""
    profile = job.model.profile
    if profile.model_type not in WINDOWED or profile.route == "joint":
        raise UsageError(
            f"--ask: parts of a film cannot be cut out of the features of {job.model.name} "
            f"({profile.model_type})",
            hint=f"Caption with a model of the kind {', '.join(WINDOWED)}",
        )


def _frames(film: FilmFrames, hit: Hit) -> tuple[int, int]:
    return (0, 1) if hit.time is None else film.frames(*hit.time)


def _refined(
    answers: HitAnswers, films: Mapping[Hit, FilmFrames], made: Mapping[Hit, HitAnswer | None]
) -> dict[Hit, tuple[float, float]]:
    """Return the moments of the hits whose answer is yes: the run of narrow windows that say yes
    and have most of the hit. A hit without one keeps its borders."""
    wanted = {
        hit: films[hit].chunks_of(*_frames(films[hit], hit))
        for hit, answer in made.items()
        if hit.time is not None and answer is not None and answer.p >= SURE
    }
    spans: dict[Hit, tuple[float, float]] = {}
    while wanted:
        narrow = {hit: _narrow(answers, films[hit], chunks) for hit, chunks in wanted.items()}
        answers.make(
            (films[hit], probe) for hit, of_hit in narrow.items() for probe in of_hit.values()
        )
        grown: dict[Hit, range] = {}
        for hit, of_hit in narrow.items():
            film, chunks = films[hit], wanted[hit]
            span = _moment(answers, of_hit, film.frames(*hit.time or (0.0, 0.0)))
            if span is None:
                continue
            spans[hit] = film.time_of(span[0]), film.time_of(span[1])
            first, last = film.frames_of(chunks[0])[0], film.frames_of(chunks[-1])[1]
            wider = range(
                max(0, chunks[0] - (span[0] <= first)),
                min(len(film.tasks), chunks[-1] + 1 + (span[1] >= last)),
            )
            if wider != chunks:
                grown[hit] = wider
        wanted = grown
    return spans


def _narrow(
    answers: HitAnswers, film: FilmFrames, chunks: range
) -> dict[tuple[int, int], AnswerItem]:
    """Return first frame and the one after the last → the probe about this narrow window, over some
    chunks. The last window ends with them."""
    begin, end = film.frames_of(chunks[0])[0], film.frames_of(chunks[-1])[1]
    starts = {*range(begin, end - NARROW, STRIDE), max(begin, end - NARROW)}
    windows = [(at, min(at + NARROW, end)) for at in sorted(starts)]
    return {window: answers.probe(film, *window) for window in windows}


def _moment(
    answers: HitAnswers, narrow: Mapping[tuple[int, int], AnswerItem], hit: tuple[int, int]
) -> tuple[int, int] | None:
    """Return the frames where all narrow windows say yes, in the run that has most of the hit; None
    without one."""
    of_windows = {window: answers[probe] for window, probe in narrow.items()}
    no = [window for window, answer in of_windows.items() if answer is None or answer.p < SURE]
    runs: list[tuple[int, int]] = []
    for start, end in pairwise(sorted({border for window in narrow for border in window})):
        if any(first <= start and end <= last for first, last in no):
            continue
        begin = runs.pop()[0] if runs and runs[-1][1] == start else start
        runs.append((begin, end))
    overlaps = {run: min(run[1], hit[1]) - max(run[0], hit[0]) for run in runs}
    best = max(runs, key=lambda run: overlaps[run], default=None)
    return best if best is not None and overlaps[best] > 0 else None
