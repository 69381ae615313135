"""Builds the captions of a run's files and the rows of caption tables.

Captions come from stored records and user corrections. A table has one row per chunk for any number
of prompts. Summaries of videos are selected and written here, too. The module runs no model.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from heapq import merge
from operator import attrgetter
from typing import Any, NamedTuple, NotRequired, Required, TypedDict

from artifacts.digests import digest_of
from artifacts.disk.json_shapes import Json, parse
from artifacts.records.packs import RecordSet, refresh_together
from artifacts.schema import ChunkIndex, MediaIndex, values_of
from artifacts.texts import answer_columns
from artifacts.texts.affixes import Answers, FixedText
from artifacts.texts.captions import (
    CONFIDENCE,
    Caption,
    Ended,
    Failure,
    answer_in,
    answer_of,
    has_tags,
    write_jsonl,
)
from artifacts.texts.edits import REJECTED, UNTOUCHED
from artifacts.texts.questions import QuestionAnswer
from artifacts.texts.tables import KINDS
from artifacts.wording import counted
from flows.core.checkpoint.precision import PartSettings
from flows.core.job.job_file import JobFile
from flows.core.job.prepare import Job
from flows.core.ledger.namespaces import one_shot_namespace
from flows.core.ledger.tasks import Task
from flows.core.media.generated_files import GeneratedFiles
from flows.core.media.media_file import MediaFile
from flows.core.options.commands import CaptionConfig, RunOptions
from flows.outputs.clocks import recorded_of, timecode_of, without_clock
from stages.decode.generation import SamplingParams
from stages.decode.json_schema import fields_of, follows
from stages.decode.schema_columns import columns_of, plain_text_of
from stages.summarize import STAGE, SUMMARY

ALL_REASONING = {
    "kind": "thinking",
    "message": "the model did not end its reasoning, so there is no answer",
    "hint": "If it was cut, raise --max-new-tokens; without --strip-think it is the caption",
}
"""The failure of a text that is all reasoning."""
MAYBE_THINKING = "cut at the token limit, maybe in the model's reasoning: raise --max-new-tokens"
REPEATED = "regenerated without repetition, because the first caption repeated itself"
STILL_REPEATED = "repeats itself, even after it was regenerated"
UNKNOWN_END = "the server ended the answer for a reason that is not known, so it may be cut"
INVALID_CORRECTION = "correction ignored: it does not follow the schema"
ONE_FRAME = ("only the chunk's middle frame was used: the model takes one image per prompt",)

STALE_SECONDS = 1.0
"""Time from the last frame of a chunk to its start above which damage hides the chunk's own
frames: a frame that begins before a chunk may be shown in it, but seldom as long."""


class StoredConfidence(TypedDict, total=False):
    """How sure the model was, as in `Caption`."""

    logprob: float | None
    margin: float | None
    margin_at: int | None


class StoredCaption(StoredConfidence, total=False):
    """The record of a caption, as far as its line follows from it."""

    caption: Required[str]
    tokens: Required[int]
    ended: Required[Ended]
    made_by: dict[str, str]
    retried: bool
    loops: bool
    reason: str
    """What a server says of an end of its own."""


class StoredSummary(TypedDict):
    """The record of a summary, as far as its line follows from it."""

    summary: str
    chapters: list[tuple[float, float, str]]
    """Start, end and text of each."""
    tokens: int
    levels: list[list[Json]]
    cut: int
    """How many texts were cut."""
    ended: Ended
    reasons: NotRequired[bool]
    """Whether a text is all reasoning; the record of any other summary lacks it."""


def file_failure(
    file: MediaFile, stage: str, why: Mapping[str, str], start: float = 0.0
) -> Failure:
    """Return the failure of a file in a stage. `why`: kind, message and hint of its cause."""
    return Failure(
        media_path=file.media_path,
        source=file.source,
        stage=stage,
        error=why["kind"],
        message=why["message"] + (f" (at {start:.1f} s)" if start else ""),
        hint=why["hint"],
    )


def captions_of(job: Job, job_file: JobFile) -> list[Caption]:
    """Return the stored captions of one file, one per chunk, in time order."""
    return [
        _caption(job, job_file.file, task, stored, shown)
        for task, stored, shown in _shown_of(job, job_file)
        if shown is not None
    ]


def caption_of(job: Job, file: MediaFile, task: Task, stored: StoredCaption) -> Caption | None:
    """Return the caption of one chunk of a file from its stored record; None if it is all
    reasoning."""
    shown = _shown(job, file, task, stored)
    return None if shown is None else _caption(job, file, task, stored, shown)


def unanswered(job: Job, job_file: JobFile) -> Iterator[Task]:
    """Yield the chunks of a file whose stored caption is all reasoning. They have no row."""
    if _strips(job):
        yield from (task for task, _, shown in _shown_of(job, job_file) if shown is None)


def _shown_of(job: Job, job_file: JobFile) -> Iterator[tuple[Task, StoredCaption, "_Shown | None"]]:
    captions = job.ledger["captions"]
    for task in job.ledger.tasks([job_file.medium]):
        if task["captions"] in captions:
            stored = captions.meta(task["captions"])
            yield task, stored, _shown(job, job_file.file, task, stored)


def _strips(job: Job) -> bool:
    return job.config.groups.text.strip_think and not job.config.groups.generation.schema


def _caption(
    job: Job, file: MediaFile, task: Task, stored: StoredCaption, shown: "_Shown"
) -> Caption:
    index = job.ledger.media_index(task.medium)
    assert index is not None
    one_frame = task.medium.kind == "video" and job.model.profile.one_frame
    config, made_by = job.config, stored.get("made_by", {})
    schema = config.groups.generation.schema
    answers = job.answers.of(task.seen)
    return Caption(
        media_path=file.media_path,
        source=file.source,
        start=task.chunk.start,
        end=task.chunk.end,
        caption=with_affixes(config, shown.text, answers),
        fields=fields_of(shown.text) if schema else None,
        model=job.model.name,
        prompt=task.prompt,
        precision=task.variant.precision,
        frames=task.chunk.times,
        features=task.seen,
        heard=task.keys.get("heard", ""),
        weights=made_by.get("weights", ""),
        commit=made_by.get("commit", ""),
        penstock=made_by.get("penstock", ""),
        tokens=stored["tokens"],
        ended=stored["ended"],
        **_confidence(stored, shown),
        name=file.name,
        timecode=timecode_of(index, task.chunk),
        recorded=recorded_of(index, task.chunk),
        warnings=(
            *index.warnings,
            *task.chunk.warnings,
            *(ONE_FRAME if one_frame else ()),
            *stale_frames(index, task.chunk),
            *shown.warnings,
            *without_clock(job, index),
        ),
        original=""
        if shown.text == shown.original
        else with_affixes(config, shown.original, answers),
        answers={n: a.short().to_json() for n, a in answers.items()},
        review=shown.review,
    )


def stale_frames(index: MediaIndex, chunk: ChunkIndex) -> Iterator[str]:
    """Yield a warning if a chunk of a damaged video has no frame of its own."""
    if index.all_warnings and chunk.times and chunk.start - chunk.times[-1] > STALE_SECONDS:
        yield f"no frame of its own can be decoded: the model saw that of {chunk.times[-1]:.2f} s"


class _Shown(NamedTuple):
    """What is shown of a stored caption."""

    original: str
    """The model's text, without thinking if that is left out."""
    text: str
    """The same, or the user's correction."""
    review: str
    warnings: list[str]


def _shown(job: Job, file: MediaFile, task: Task, stored: StoredCaption) -> _Shown | None:
    """Return what is shown of a stored caption; None if it is all reasoning, and no user wrote
    another text."""
    schema = job.config.groups.generation.schema
    original, warnings = _text_and_warnings(job, stored)
    # An edit counts also if the reasoning was shown when it was made.
    texts = dict.fromkeys((original or "", str(stored["caption"])))
    edits = (job.edits().of(task.seen, file.name, task.prompt, text) for text in texts)
    edit = next((edit for edit in edits if edit != UNTOUCHED), UNTOUCHED)
    if original is None and edit.caption is None:
        return None
    original = original or ""
    text = original if edit.caption is None else edit.caption
    if text != original and _strips(job) and has_tags(text):
        text = answer_in(text) or text
    if schema and text != original and not follows(schema, text):
        text, warnings = original, [*warnings, INVALID_CORRECTION]
    return _Shown(original, text, edit.review, warnings)


def _confidence(stored: StoredCaption, shown: _Shown) -> StoredConfidence:
    """Return the fields that say how sure the model was of the caption in a line; none where that
    is unknown, as of a correction."""
    text, written, at = shown.original, stored["caption"], stored.get("margin_at")
    if shown.text != text:
        return {}
    if at is not None and written != text:  # None in thinking that is left out
        place = at - written.rfind(text)
        at = place if 0 <= place < len(text) else None
    return {"logprob": stored.get("logprob"), "margin": stored.get("margin"), "margin_at": at}


def with_affixes(config: RunOptions, text: str, answers: Answers) -> str:
    """Return a caption with the run's trigger, prefix and suffix, which show the answers about its
    chunk. Text that programs may read as JSON gets no trigger, which would break it."""
    options = config.groups.text
    is_json = text.lstrip()[:1] in ("{", "[") and (config.groups.generation.schema or _parses(text))
    trigger = "" if is_json else options.trigger
    fixed = FixedText.of(trigger, options.prefix, options.suffix)
    return fixed.about(answers).around(text)


def _parses(text: str) -> bool:
    try:
        parse(text)
    except ValueError:
        return False
    return True


def unrejected(captions: Iterable[Caption]) -> Iterator[Caption]:
    """Yield the captions that users did not reject. Only `captions.jsonl` has the rejected ones."""
    return (caption for caption in captions if caption.review != REJECTED)


def readable_captions(job: Job, job_file: JobFile) -> list[Caption]:
    """Return the captions of one file for human readers. For a schema of one text or one list of
    texts, return the text without its JSON."""
    captions, config = captions_of(job, job_file), job.config
    params = config.groups.generation
    if not params.schema:
        return captions
    text = [plain_text_of(params.schema, caption.fields or {}) for caption in captions]
    return [
        caption
        if original is None
        else replace(
            caption, caption=with_affixes(config, original, job.answers.of(caption.features))
        )
        for caption, original in zip(captions, text, strict=True)
    ]


def complete_captions(job: Job, job_file: JobFile) -> list[Caption] | None:
    """Return the captions of one file for human readers; None if some are missing."""
    captions = readable_captions(job, job_file)
    lost = sum(1 for _ in unanswered(job, job_file))
    is_complete = captions and len(captions) >= job.ledger.expected(job_file.medium) - lost
    return captions if is_complete else None


def _text_and_warnings(job: Job, stored: StoredCaption) -> tuple[str | None, list[str]]:
    """Return the text of a stored caption, and the warnings about how it was generated. The text is
    None if all of it is reasoning."""
    text, warnings = str(stored["caption"]), []
    if stored.get("retried"):
        warnings.append(STILL_REPEATED if stored.get("loops") else REPEATED)
    if reason := stored.get("reason"):
        warnings.append(f"{UNKNOWN_END}: {reason}")
    if not _strips(job):
        return text, warnings
    answer = answer_of(stored, opened=job.model.profile.opens_reasoning)
    if job.model.served and stored["ended"] == "length" and not has_tags(text):
        warnings.append(MAYBE_THINKING)  # by a template that only the server knows
    elif answer is not None and answer != text:
        warnings.append("thinking is left out")
    return answer, warnings


def captions_by_file(job: Job) -> Iterator[list[Caption]]:
    """Yield the stored captions of each file, in source order. Captions of several prompts are
    grouped by chunk."""
    for group in job.by_file:
        by_prompt = [captions_of(job, job_file) for job_file in group]
        yield [*merge(*by_prompt, key=attrgetter("start"))]


OF_PROMPT = ("prompt", "tokens", "ended", *CONFIDENCE)
"""Fields per prompt, each in a column `NAME_field`. The caption's column is `NAME`, or
`caption_NAME` where a column of the chunk has that name."""
SOUND_COLUMNS = {"precision": "precision with audio", "heard": "text"}
"""Columns of captions made with sound, with their types."""
CHUNK_COLUMNS = {*KINDS, *SOUND_COLUMNS} - {"caption", *OF_PROMPT}
OF_CHUNK = attrgetter("media_path", "source", "start", "features")
"""Fields that the captions of one chunk share."""
ANSWER = "answer_"
"""Beginning of the columns of answers."""
Properties = Mapping[tuple[str, str], str]
"""Prompt name and schema property → column."""


def kinds_of(job: Job) -> dict[str, str]:
    """Return column → kind: the fields of a caption or of each named prompt, then the answers and
    the properties of the schema."""
    names = _names(job)
    kinds: dict[str, str] = {}
    for column, kind in KINDS.items():
        of_each = any(names) and (column == "caption" or column in OF_PROMPT)
        kinds |= {_column(name, column): kind for name in names} if of_each else {column: kind}
    if job.model.hears:
        kinds |= SOUND_COLUMNS
    kinds |= _answer_kinds(job)
    properties = properties_of(job)
    of_schema = columns_of(job.config.groups.generation.schema) if properties else {}
    return kinds | {column: of_schema[name] for (_, name), column in properties.items()}


def _answer_kinds(job: Job) -> dict[str, str]:
    """Return the columns of answers and their types. Those of a server may be bounds."""
    questions = job.config.groups.answers.every_question
    bounded = [question.name for question in questions if job.model.served is not None]
    return answer_columns.columns_of(questions, bounded=bounded, before=ANSWER)


def properties_of(job: Job) -> dict[tuple[str, str], str]:
    """Return the columns of schema properties. A name that is taken gets the prefix `field_`."""
    params = job.config.groups.generation
    names, ours = _names(job), ("caption", *OF_PROMPT)
    ours_too = SOUND_COLUMNS if job.model.hears else {}
    taken = {*KINDS, *ours_too, *(_column(name, field) for name in names for field in ours)}
    taken |= _answer_kinds(job).keys()
    columns: dict[tuple[str, str], str] = {}
    for name in names if params.schema else ():
        before = f"{name}_" if name else ""
        for property_name in columns_of(params.schema):
            column = property_name
            while before + column in taken:
                column = f"field_{column}"
            taken.add(before + column)
            columns[name, property_name] = before + column
    return columns


def table_rows(
    captions: Iterable[Caption], kinds: Mapping[str, str], properties: Properties
) -> Iterator[Caption | dict[str, Json]]:
    """Yield one row per chunk with these columns; columns of unused prompts are None."""
    captions = unrejected(captions)
    of_prompts = {*kinds} - {*properties.values(), *SOUND_COLUMNS}
    if of_prompts | SOUND_COLUMNS.keys() == CHUNK_COLUMNS | {"caption", *OF_PROMPT}:  # unnamed
        yield from (_row([c], kinds, properties) if properties else c for c in captions)
        return
    chunk: list[Caption] = []
    for caption in captions:
        # Neighbours may be copies with one name and source, such as in a list.
        if chunk and (
            OF_CHUNK(caption) != OF_CHUNK(chunk[0]) or caption.name in {c.name for c in chunk}
        ):
            yield _row(chunk, kinds, properties)
            chunk = []
        chunk.append(caption)
    if chunk:
        yield _row(chunk, kinds, properties)


def _row(
    captions_of_chunk: Sequence[Caption], kinds: Mapping[str, str], properties: Properties
) -> dict[str, Json]:
    row: dict[str, Json] = dict.fromkeys(kinds)
    for caption in captions_of_chunk:
        values = values_of(caption)
        row |= {name: values[name] for name in CHUNK_COLUMNS & kinds.keys()}
        row |= {_column(caption.name, name): values[name] for name in ("caption", *OF_PROMPT)}
        if not caption.name:
            row["original"] = values["original"]  # for tables in memory
        for name, answer in (caption.answers or {}).items():
            of_answer = answer_columns.values_of_answer(name, QuestionAnswer(**answer))
            named = {f"{ANSWER}{column}": of_answer[column] for column in of_answer}
            row |= {column: named[column] for column in named.keys() & kinds.keys()}
        for (name, property_name), column in properties.items():
            if name == caption.name:
                row[column] = _value((caption.fields or {}).get(property_name), kinds[column])
    row["warnings"] = list(
        dict.fromkeys(text for caption in captions_of_chunk for text in caption.warnings)
    )
    return row


def _value(value: Any, kind: str) -> Any:
    """Convert the value of a property to the kind of its column."""
    if value is None:
        return None
    if kind == "number":
        return float(value)
    if kind == "text" and not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return value


def _names(job: Job) -> list[str]:
    return [*dict.fromkeys(job_file.file.name for job_file in job.files)]


def _column(name: str, field: str) -> str:
    if not name:
        return field
    if field != "caption":
        return f"{name}_{field}"
    return f"caption_{name}" if name in CHUNK_COLUMNS else name


SUMMARIES = "summaries.jsonl"
"""File of the summaries, in the folder of a run."""
TEXT_SETTINGS = (
    "sampling", "temperature", "top_p", "top_k", "seed", "repetition_penalty",
    "presence_penalty", "no_repeat_ngram", "avoid", "system",
)  # fmt: skip
"""Sampling settings of captions that also apply to other texts, such as summaries."""


class ShownChapter(TypedDict):
    """Start and end in seconds, and text, of a chapter."""

    start: float
    end: float
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SummaryRow:
    """One line of `summaries.jsonl`: the summary of one video."""

    media_path: str
    """Path relative to the folder given, or the file's name; POSIX."""
    source: str
    """The command line argument that selected the file."""
    summary: str
    chapters: tuple[ShownChapter, ...]
    """They cover the whole video."""
    model: str
    precision: str
    """Precision of the language half."""
    tokens: int
    """Number of generated tokens, those of chapters included."""
    levels: tuple[int, ...]
    """Number of texts on each level, from chapters to the one summary."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class SummaryInput:
    """A video whose chunks are all captioned or failed."""

    file: MediaFile
    digest: str
    """Digest of its content."""
    texts: list[tuple[float, float, str]]
    """Start, end and caption of each chunk, in order."""
    lost: int
    """Number of chunks that failed."""


def summary_inputs(job: Job) -> Iterator[SummaryInput]:
    """Yield the videos of a job that can be summarized, in source order. Of several named prompts,
    only the first one's captions are used."""
    bare = job
    if isinstance(job.config, CaptionConfig):
        bare = replace(job, config=replace(job.config, trigger="", prefix="", suffix=""))
    for group in job.by_file:
        file, medium = group[0].file, group[0].medium
        captions = readable_captions(bare, group[0]) if medium.kind == "video" else []
        tasks = job.ledger.tasks([medium])
        lost = sum(job.ledger.has_failed(task) for task in tasks)
        lost += sum(1 for _ in unanswered(job, group[0]))
        not_rejected = [*unrejected(captions)]
        if not_rejected and len(captions) >= len(tasks) - lost:
            texts = [(caption.start, caption.end, caption.caption) for caption in not_rejected]
            yield SummaryInput(file=file, digest=medium.digest, texts=texts, lost=lost)


def text_sampling_params(job: Job) -> SamplingParams:
    """Return the caption settings that also apply to other texts."""
    non_defaults = job.config.groups.generation.non_defaults
    return SamplingParams(
        **{name: value for name, value in non_defaults.items() if name in TEXT_SETTINGS}
    )


class Summaries:
    """The summaries of one job that are in the store."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._settings = {  # those of the key, without model and captions
            "asked": job.config.groups.prompts.summary_prompt or SUMMARY,
            "max_new_tokens": job.config.groups.engine.max_new_tokens,
            "generation": dict(*text_sampling_params(job).key_fields),
            "strip_think": job.config.groups.text.strip_think and 2,
        }
        self._records, self._failures = (
            [
                (settings, RecordSet(job.store, kind, self.namespace(settings)))
                for settings in job.model.settings["language"]
            ]
            for kind in (STAGE.writes, "failures")
        )

    def namespace(self, settings: PartSettings) -> str:
        """Return the namespace of summaries in these settings."""
        return one_shot_namespace(STAGE, self._job.model, settings)

    def key(self, video: SummaryInput, settings: PartSettings) -> str:
        """Return the key of a video's summary in these settings. It does not depend on the context
        length: a summary made with any context counts."""
        return digest_of([self.namespace(settings), self._settings, video.texts])

    def _find(
        self, video: SummaryInput, every: Iterable[tuple[PartSettings, RecordSet]]
    ) -> tuple[PartSettings, Any] | None:
        """Return the record of a video in the best settings; None if there is none."""
        for settings, records in every:
            if (key := self.key(video, settings)) in records:
                return settings, records.meta(key)
        return None

    def _stored(self, video: SummaryInput) -> tuple[PartSettings, StoredSummary] | None:
        """Return the record of a video's summary; None if there is none."""
        return self._find(video, self._records)

    def is_missing(self, video: SummaryInput) -> bool:
        """Return whether a video has no summary and no failure."""
        return not (self._stored(video) or self._find(video, self._failures))

    def failures(self) -> Iterator[Failure]:
        """Yield the failures of videos that have no summary, or a part that is all reasoning."""
        for video in summary_inputs(self._job):
            why: Mapping[str, str] | None
            if (stored := self._stored(video)) is not None:
                why = ALL_REASONING if stored[1].get("reasons") else None
            else:
                why = failed[1] if (failed := self._find(video, self._failures)) else None
            if why is not None:
                yield file_failure(video.file, STAGE.name, why)

    def forget_failures(self) -> None:
        """Drop the stored failures, so that those videos are retried."""
        for settings, records in self._failures:
            records.drop([self.key(video, settings) for video in summary_inputs(self._job)])

    def refresh(self) -> None:
        """Load records that were published since."""
        refresh_together(*(records for _, records in [*self._records, *self._failures]))

    def _rows(self) -> Iterator[tuple[SummaryInput, SummaryRow]]:
        """Yield the videos that have a stored summary, with its row."""
        for video in summary_inputs(self._job):
            stored = self._stored(video)
            if stored is not None and not stored[1].get("reasons"):
                settings, meta = stored
                row = SummaryRow(
                    media_path=video.file.media_path,
                    source=video.file.source,
                    summary=meta["summary"],
                    chapters=tuple(
                        {"start": start, "end": end, "text": text}
                        for start, end, text in meta["chapters"]
                    ),
                    model=self._job.model.name,
                    precision=settings.label,
                    tokens=meta["tokens"],
                    levels=tuple(map(len, meta["levels"])),
                    warnings=tuple(_warnings(video, meta)),
                )
                yield video, row

    def write(self) -> tuple[list[SummaryRow], int]:
        """Write the stored summaries. Return them, and the number of their chapters and summaries,
        which videos with the same captions share. Raises EnvironmentFault."""
        rows, texts = list[SummaryRow](), dict[tuple[tuple[float, float, str], ...], int]()
        for video, row in self._rows():
            rows.append(row)
            texts[tuple(video.texts)] = sum(row.levels)
        own = GeneratedFiles(self._job.store, out=self._job.out)
        own.renew(self._job.out / SUMMARIES, partial(write_jsonl, rows=rows))
        return rows, sum(texts.values())


MAYBE_UNABLE = "the model may be unable to summarize"


def has_words(text: str) -> bool:
    """Return whether a text has letters."""
    return any(map(str.isalpha, text))


def _warnings(video: SummaryInput, meta: StoredSummary) -> Iterator[str]:
    chapters = sum(not has_words(text) for *_, text in meta["chapters"])
    parts = ["the summary"] * (not has_words(meta["summary"]))
    parts += [counted(chapters, "chapter")] * bool(chapters)
    if parts:
        yield f"without words: {' and '.join(parts)}; {MAYBE_UNABLE}"
    if video.lost:
        yield f"without a caption, and left out: {counted(video.lost, 'chunk')}"
    if meta["cut"]:
        yield f"too long for the model, and cut: {counted(meta['cut'], 'text')}"
    if meta["ended"] == "length":
        yield "cut at the token limit: raise --max-new-tokens"
