"""Selects the videos of a job to be summarized, from their captions, and writes the stored
summaries. Runs no model.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from artifacts.captions import Failure, write_jsonl
from artifacts.keys import digest_of
from artifacts.packs import RecordSet
from artifacts.record_union import refresh_together
from artifacts.words import counted
from flows.checkpoint.precision import PartSettings
from flows.job.prepare import Job
from flows.ledger.namespaces import one_shot_namespace
from flows.media.media_files import MediaFile
from flows.options.commands import CaptionConfig
from flows.options.text import EngineOptions, PromptOptions, TextOptions
from flows.results.captions import in_words, unrejected
from stages.decode.generation import SamplingParams
from stages.process.stage import StageSpec
from stages.summarize.job import SUMMARY

SUMMARIES = "summaries.jsonl"
"""File of the summaries, in the folder of a run."""
OF_ANY_TEXT = (
    "sampling", "temperature", "top_p", "top_k", "seed", "beams", "repetition_penalty",
    "presence_penalty", "no_repeat_ngram", "avoid", "system",
)  # fmt: skip
"""Settings of captions that are as good for other texts: not what captions begin with, or are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SummaryRow:
    """One line of `summaries.jsonl`: the summary of one video."""

    media_path: str
    """Path relative to the folder given, or the file's name; POSIX."""
    source: str
    """The argument that brought the file in."""
    summary: str
    chapters: tuple[dict[str, Any], ...]
    """Start and end in seconds, and text, of each chapter; together they are the whole video."""
    model: str
    precision: str
    """What the language half computed in."""
    tokens: int
    """How many tokens were generated, for chapters and all."""
    levels: tuple[int, ...]
    """Number of texts on each level: chapters first, at last the one summary."""
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
    """Chunks that have no caption, and never will."""


def stories(job: Job) -> Iterator[SummaryInput]:
    """Yield the videos of a job that can be summarized, in source order. Of several named prompts
    the captions of the first count."""
    bare = job
    if isinstance(job.config, CaptionConfig):
        bare = replace(job, config=replace(job.config, trigger="", prefix="", suffix=""))
    for group in job.by_file:
        file, medium = group[0]
        captions = in_words(bare, file, medium) if medium.kind == "video" else []
        tasks = job.ledger.tasks([medium])
        lost = sum(job.ledger.has_failed(task) for task in tasks)
        kept = [*unrejected(captions)]
        if kept and len(captions) >= len(tasks) - lost:
            texts = [(each.start, each.end, each.caption) for each in kept]
            yield SummaryInput(file=file, digest=medium.digest, texts=texts, lost=lost)


def generation_of_texts(job: Job) -> SamplingParams:
    """Return of the settings of captions those that are as good for other texts."""
    told = SamplingParams.of(job.config).told
    return SamplingParams(**{name: value for name, value in told.items() if name in OF_ANY_TEXT})


def _how_said(job: Job) -> dict[str, Any]:
    """Return all that decides the words of a summary but the half and its captions."""
    config = job.config
    return {
        "asked": PromptOptions.of(config).summary_prompt or SUMMARY,
        "max_new_tokens": EngineOptions.of(config).max_new_tokens,
        "generation": generation_of_texts(job).told,
        "strip_think": TextOptions.of(config).strip_think,
    }


class Summaries:
    """The summaries of one job that are in the store."""

    def __init__(self, job: Job, stage: StageSpec) -> None:
        self._job = job
        self._stage = stage
        self._how = _how_said(job)
        every = job.model.settings["language"]
        self._records = [(s, self._of(s, stage.writes)) for s in every]
        self._failures = [(s, self._of(s, "failures")) for s in every]

    def namespace(self, settings: PartSettings) -> str:
        """Return the namespace of what is said in these settings."""
        return one_shot_namespace(self._stage, self._job.model, settings)

    def key(self, story: SummaryInput, settings: PartSettings) -> str:
        """Return the key of a video's summary in these settings. The context is not in it: what was
        made in any is done."""
        turns = self._job.model.profile.turn_words(
            system=bool(SamplingParams.of(self._job.config).system)
        )
        return digest_of([self.namespace(settings), self._how, story.texts, *turns])

    def of(self, story: SummaryInput) -> tuple[PartSettings, Mapping[str, Any]] | None:
        """Return what was said of a video, in the best settings; None where nothing was yet."""
        for settings, records in self._records:
            if (key := self.key(story, settings)) in records:
                return settings, records.meta(key)
        return None

    def is_missing(self, story: SummaryInput) -> bool:
        """Return whether a video has no summary, and may have one."""
        return self.of(story) is None and self._failure(story) is None

    def _failure(self, story: SummaryInput) -> Mapping[str, Any] | None:
        for settings, records in self._failures:
            if (key := self.key(story, settings)) in records:
                return records.meta(key)
        return None

    def failures(self) -> Iterator[Failure]:
        """Yield the videos on which the model raised, and that have no summary."""
        for story in stories(self._job):
            why = self._failure(story)
            if why is not None and self.of(story) is None:
                yield Failure(
                    media_path=story.file.media_path,
                    source=story.file.source,
                    stage=self._stage.name,
                    error=why["kind"],
                    message=why["message"],
                    hint=why["hint"],
                )

    def forget_failures(self) -> None:
        """Let the videos that failed before be tried again."""
        for settings, records in self._failures:
            records.drop([self.key(story, settings) for story in stories(self._job)])

    def refresh(self) -> None:
        """See what was published since."""
        refresh_together(*(records for _, records in [*self._records, *self._failures]))

    def _of(self, settings: PartSettings, kind: str) -> RecordSet:
        return RecordSet(self._job.store, kind, self.namespace(settings))

    def rows(self) -> Iterator[SummaryRow]:
        """Yield the lines of the videos of which a summary is there."""
        for story in stories(self._job):
            if (found := self.of(story)) is not None:
                settings, said = found
                yield SummaryRow(
                    media_path=story.file.media_path,
                    source=story.file.source,
                    summary=said["summary"],
                    chapters=tuple(
                        {"start": start, "end": end, "text": text}
                        for start, end, text in said["chapters"]
                    ),
                    model=self._job.model.name,
                    precision=settings.label,
                    tokens=said["tokens"],
                    levels=tuple(map(len, said["levels"])),
                    warnings=tuple(_warnings(story, said)),
                )

    def write(self) -> list[SummaryRow]:
        """Write what is there, and return it. Raises EnvironmentFault."""
        rows = list(self.rows())
        write_jsonl(self._job.out / SUMMARIES, rows)
        return rows


def _warnings(story: SummaryInput, said: Mapping[str, Any]) -> Iterator[str]:
    if story.lost:
        yield f"not in it, for want of a caption: {counted(story.lost, 'chunk')}"
    if said["cut"]:
        yield f"too long to be read whole, and cut: {counted(said['cut'], 'text')}"
    if said["ended"] == "length":
        yield "it ended in the middle: --max-new-tokens lets it come to an end"
