"""Runs one round of learning, from a run's decisions to captions of the adapter that they trained.

Each step ends by writing `round.json`. A killed round continues after its last step, with the
examples that it chose. The next round can also be described without running it.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from artifacts.digests import digest_of
from artifacts.disk.files import whole_file
from artifacts.disk.json_records import read_json_file
from artifacts.disk.paths import folder_named
from artifacts.disk.regular_files import guard
from artifacts.errors import CannotFit, ControlWord, Diverged, NoFeatures, UsageError
from artifacts.records.provenance import ROUND
from artifacts.texts.edits import DIGITS
from artifacts.wording import counted
from flows.commands.caption import run as sift_first
from flows.commands.learn.decisions import (
    Uncaptioned,
    action_of,
    carry,
    decisions_of,
    left_round,
    names,
    own_rounds,
    previous_adapter,
    refuse_missing_media,
    with_media,
)
from flows.commands.learn.examples import Examples, divide
from flows.commands.learn.result import Learned, is_better, times_lower
from flows.commands.review.captions import ReviewedCaptions
from flows.commands.tune.result import RUN
from flows.commands.tune.run import train
from flows.commands.tune.training_data import Example
from flows.core.console.display import Display
from flows.core.job.prepare import Job
from flows.core.job.replan import replanned_once
from flows.core.ledger.waves import most_tokens
from flows.core.machine.launch import DirectLauncher
from flows.core.machine.versions import now
from flows.core.options.commands import RunOptions
from flows.core.options.packages import check_training_packages
from flows.core.options.training import (
    LEAST,
    CommandRecord,
    LearnConfig,
    RecordedRun,
    TrainingOptions,
    TuneRun,
)
from flows.execution.run import LauncherMaker
from flows.execution.run_observer import OnBegin, RunObserver
from flows.outputs.folder.run_lock import only_run_in
from flows.outputs.record.record_writer import RecordWriter
from flows.outputs.record.recorded_command import with_values
from flows.outputs.record.rounds import (
    ADAPTER,
    CARRIED,
    CHOSEN,
    DONE,
    KINDS,
    LEARN,
    LEAST_MEDIA,
    RECAPTIONED,
    ROUND_RECORD,
    SCORED,
    TRAINED,
    Round,
    RoundExample,
    adapter_digest,
    round_folder,
    rounds_in,
    write_round,
)
from flows.outputs.run_result import RunResult
from stages.models.adapter_modules import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from stages.tune import CHECKPOINT, SCORE
from stages.tune.layout import layout_of
from stages.tune.record import CaptionScore, ScoreRecord

CAPTIONS = "captions"
"""Folder of a round in which its adapter captions the media first."""


def to_train_on(examples: Sequence[RoundExample]) -> list[Example]:
    """Return examples of a round as those of a training."""
    return [
        Example(
            path=Path(example.media_path),
            caption=example.caption,
            start=example.start,
            prompt=example.prompt,
            features=example.features,
        )
        for example in examples
    ]


def learn(
    config: LearnConfig,
    run: RecordedRun,
    display: Display,
    make_launcher: LauncherMaker = DirectLauncher,
    on_begin: OnBegin | None = None,
) -> Learned:
    """Run a round, or the rest of one that was killed. `on_begin` is as in `caption`. Raises
    PenstockError; the same call continues."""
    check_training_packages(config)
    out = folder_named(config.out, "out")
    guard(out)
    if not (out / LEARN).exists():
        preview(config, run)  # a refusal leaves no folder
    with only_run_in(out / LEARN, "learning in", "name another folder"):
        run, rounds = own_rounds(config, run, out)
        round_ = left_round(out, rounds)
        if round_ is None:
            round_ = choose(config, run, out, rounds)
            if round_ is None:
                return Learned(out=out, round=rounds[-1], is_new=False)
            # A former choice may have begun to train.
            shutil.rmtree(round_folder(out, round_.round), ignore_errors=True)
            for line in differing_lines(round_):
                display.print_line(line)
            write_round(out, round_, run.config.store)
        else:
            given, config = config, replace(config, **round_.options)
            own = "" if config == given else " with the options that it began with"
            display.print_line(f"continuing round {round_.round} ({round_.phase}){own}")
        work = _Work(
            config=config,
            run=run,
            out=out,
            round=round_,
            display=display,
            make_launcher=make_launcher,
            on_begin=on_begin,
        )
        return work.finish()


def choose(
    config: LearnConfig, run: RecordedRun, out: Path, rounds: Sequence[Round], *, dry: bool = False
) -> Round | None:
    """Return a new round with its examples; None if nothing changed since the last one. Unless
    `dry`, edits that only other journals have are added to the run's. Raises UsageError,
    EnvironmentFault."""
    if run.config.language_gguf:
        raise UsageError(
            "--language-gguf: a GGUF file cannot be trained", hint="Caption without it, then learn"
        )
    opened = ReviewedCaptions(out, run.config.store, trust=config.trust_folder)
    with closing(opened) as captions:
        decisions = decisions_of(captions, config.journal, rounds)
        if decisions.adopted and not dry:
            changes = captions.folder.changes_of(decisions.adopted)
            captions.add(action_of("edits of copies", changes))
        is_proved = captions.folder.belief.proof(ROUND)
    proved = {round_.round for round_ in rounds_in(out, is_proved)}
    others = {round_.round for round_ in rounds_in(out)} - proved  # they stay as they are
    settings = {name: getattr(config, name) for name in KINDS}  # they decide an adapter
    decided = sorted([example.key, example.caption] for example in decisions.examples)
    digest = digest_of([decided, settings, run.config.model])[:DIGITS]
    if rounds and rounds[-1].digest == digest:
        return None
    trained, held_out, is_enough = _divided(config, out, decisions.examples, rounds)
    refuse_missing_media(run, captions)
    return Round(
        round=max((*(round_.round for round_ in rounds), *others), default=0) + 1,
        phase="chosen",
        started=now(),
        digest=digest,
        previous=previous_adapter(run, out),
        settings=settings,
        command=run.command,
        examples=trained,
        held_out=held_out,
        differing=decisions.differing,
        enough=is_enough,
    )


def _divided(
    config: LearnConfig, out: Path, examples: Sequence[RoundExample], rounds: Sequence[Round]
) -> tuple[Examples, Examples, bool]:
    """Return the examples to train on, those to hold out, and whether they are enough to accept an
    adapter. Raises UsageError if they are not, unless it is trained anyway."""
    count = len(examples)
    if count < LEAST and not config.anyway:
        raise UsageError(
            f"{counted(count, 'caption')} in {out} corrected or accepted: "
            f"{LEAST - count} more are needed",
            hint="Correct or accept them in `penstock review`; --anyway trains without accepting",
        )
    trained, held_out = divide(examples, rounds)
    media = len({example.identity for example in held_out})
    if media < LEAST_MEDIA and not config.anyway:
        raise UsageError(
            f"the corrected or accepted captions in {out} leave {counted(media, 'file')} for a "
            f"test: {LEAST_MEDIA} are needed, and at most half of the captions are held out",
            hint="Decide on other files in `penstock review`; --anyway trains without accepting",
        )
    if not trained or not held_out:
        raise UsageError(
            f"{counted(count, 'caption')} in {out} corrected or accepted: none is left to "
            f"{'train on' if held_out else 'hold out'}",
            hint="Correct or accept more in `penstock review`",
        )
    return trained, held_out, count >= LEAST and media >= LEAST_MEDIA


def differing_lines(round_: Round) -> list[str]:
    """Return a line that names the captions on which journals differ, if there are any."""
    differing = names(round_.differing)
    return [f"left out, because journals differ: {differing}"] if differing else []


def caption_tokens(round_: Round) -> int:
    """Return about how many tokens the longest example of a round has."""
    return most_tokens(example.caption for example in round_.examples)


@dataclass(kw_only=True, slots=True)
class _Work:
    """A round in progress."""

    config: LearnConfig
    run: RecordedRun
    out: Path
    round: Round
    display: Display
    make_launcher: LauncherMaker
    on_begin: OnBegin | None
    captioned: RunResult | None = None

    @property
    def folder(self) -> Path:
        return round_folder(self.out, self.round.round)

    @property
    def adapter(self) -> str:
        return str(self.folder / ADAPTER)

    @property
    def previous(self) -> str:
        """Return the adapter with which the run was captioned; empty: none."""
        named = self.round.previous
        return str(self.out / named) if named else ""

    def finish(self) -> Learned:
        """Do what is left of the round."""
        while self.round.phase != DONE:
            STEPS[self.round.phase](self)
        learned = Learned(out=self.out, round=self.round)
        if self.captioned is None:
            return learned
        captioned = self.captioned
        return replace(learned, failures=captioned.failures, warnings=captioned.warnings)

    def _end(self, round_: Round) -> None:
        self.round = round_
        write_round(self.out, self.round, self.run.config.store)

    def train(self) -> None:
        """Train the adapter, from the previous one if there is one."""
        folder, previous = Path(self.adapter), self.previous
        examples = to_train_on(self.round.examples)
        if previous:
            self.config = replace(self.config, lora_rank=layout_of(Path(previous)).rank)
            for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
                # Once trained, the weights are those of this round.
                if not (folder / ADAPTER_WEIGHTS).exists():
                    with whole_file(folder / name) as file:
                        file.write((Path(previous) / name).read_bytes())
        training = self.run.training(self.config, len(examples), resume=bool(previous))
        try:
            self._tune(training, examples, folder, tokens=caption_tokens(self.round))
        except (UsageError, CannotFit) as error:
            is_lost = isinstance(error, ControlWord | Diverged | NoFeatures)
            if is_lost or not (folder / CHECKPOINT).exists():
                (self.folder / ROUND_RECORD).unlink()  # the next call takes its own options
            raise
        self._end(replace(self.round, phase=TRAINED, trained=adapter_digest(folder)))

    def score(self) -> None:
        """Score the previous model and the new adapter, and decide."""
        scoring = self.run.training(self.config, 1, resume=False)
        scoring = replace(scoring, validate_only=True)
        held_out, scores = to_train_on(self.round.held_out), list[list[CaptionScore]]()
        for name, adapter in (("before", self.previous), ("after", self.adapter)):
            folder = self.folder / name
            self._tune(scoring, held_out, folder, adapter=adapter)
            scores.append(read_json_file(ScoreRecord, folder / RUN / SCORE, AGAIN).each)
        self.round.before, self.round.after = scores
        self.round.lower = times_lower(self.round, self.config.seed)
        accepted = self.round.enough and is_better(self.round)
        phase = SCORED if accepted else DONE
        self._end(replace(self.round, phase=phase, accepted=accepted))

    def recaption(self) -> None:
        """Make the captions of the adapter in the store. The run's own files stay."""
        config = self.run.captioning(self.config, self.folder / CAPTIONS, self.adapter)
        only_lines = replace(config, format=(), beside=False, summary=False, existing=None)
        self._caption(replace(only_lines, overwrite=False), self.on_begin)
        self._end(replace(self.round, phase=RECAPTIONED))

    def carry(self) -> None:
        """Keep all decisions under the new words, then write the run's files. No review can change
        a decision meanwhile."""
        with (
            closing(self._reviewed(self.out)) as old,
            closing(self._reviewed(self.folder / CAPTIONS)) as new,
        ):
            try:
                kept, changed = carry(old, new, self.round.round)
            except Uncaptioned:  # the same adapter would write none again
                self._end(replace(self.round, phase=DONE, accepted=False))
                raise
            if self.round.phase == RECAPTIONED:
                round_ = replace(self.round, carried=kept, changed=changed)
                self._end(replace(round_, phase=CARRIED, captions=len(new.folder.rows)))
            config = self.run.captioning(self.config, self.out, self.adapter)
            self.captioned = self._caption(config, self._begin)
        self._end(replace(self.round, phase=DONE, captions=self.captioned.captions))
        shutil.rmtree(self.folder / CAPTIONS, ignore_errors=True)

    def _reviewed(self, out: Path) -> ReviewedCaptions:
        return ReviewedCaptions(out, self.run.config.store, trust=self.config.trust_folder)

    def _begin(self, job: Job, writer: RecordWriter) -> None:
        """Record the command that repeats the run with the adapter."""
        if command := self.round.command:
            values = {"--adapter": self.adapter, "--out": str(self.out)}
            values |= {"--store": self.run.config.store} if self.run.config.store else {}
            words = with_values(command.words, values)
            writer.record.command = CommandRecord(words=tuple(words), folder=command.folder)
        if self.on_begin is not None:
            self.on_begin(job, writer)

    def _caption(self, config: RunOptions, on_begin: OnBegin | None) -> RunResult:
        return sift_first.caption(config, self.display, self.make_launcher, on_begin)

    def _tune(
        self,
        training: TrainingOptions,
        examples: Sequence[Example],
        folder: Path,
        *,
        tokens: int = 0,
        adapter: str = "",
    ) -> None:
        """Train on examples, or score them, in a folder."""
        run = self.run.tuning(self.config, folder / RUN, tokens, adapter)

        def attempt() -> None:
            observer = RunObserver(self.display, self.on_begin)
            train(training, examples, run, observer, self.make_launcher)

        try:
            replanned_once(attempt, self.display.print_line)
        except NoFeatures:  # they were removed from the store, and are made again
            examples, sources = with_media(self.run, examples)
            if not sources:
                raise
            run = replace(run, sources=sources)
            replanned_once(attempt, self.display.print_line)


STEPS: Mapping[str, Callable[[_Work], None]] = {
    CHOSEN: _Work.train,
    TRAINED: _Work.score,
    SCORED: _Work.recaption,
    RECAPTIONED: _Work.carry,
    CARRIED: _Work.carry,
}
"""What is done in a round → the step that follows."""
AGAIN = "Run the same command again"


def preview(
    config: LearnConfig, run: RecordedRun
) -> tuple[list[str], TuneRun | None, list[Example]]:
    """Return lines on the next round, the run that trains its adapter (None if there is nothing to
    train), and the captions that it trains on. Raises UsageError, EnvironmentFault."""
    check_training_packages(config)
    out = folder_named(config.out, "out")
    run, rounds = own_rounds(config, run, out)
    unfinished = left_round(out, rounds)
    round_ = unfinished or choose(config, run, out, rounds, dry=True)
    if round_ is None:
        return [f"nothing new to learn since round {rounds[-1].round}"], None, []
    folder = round_folder(out, round_.round) / ADAPTER / RUN
    tuning = run.tuning(config, folder, caption_tokens(round_))
    return _lines(round_, is_begun=unfinished is not None), tuning, to_train_on(round_.examples)


def _lines(round_: Round, *, is_begun: bool) -> list[str]:
    corrected = sum(example.corrected for example in round_.held_out)
    held = f"{len(round_.held_out)} held out, {corrected} of them corrected"
    if round_.is_weak:
        held += f"; weak test: {counted(round_.media_held, 'file')}"
    state = f"continues from {round_.phase!r}" if is_begun else "is new"
    lines = [
        f"round {round_.round} {state}: {counted(len(round_.examples), 'caption')} to train "
        f"on, {held}",
        f"from {round_.previous or 'the model without an adapter'}",
    ]
    return [*lines, *differing_lines(round_)]
