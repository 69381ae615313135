"""Selects the videos of a job to summarize, and writes the stored summaries. Runs no model."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from artifacts.captions import Failure, write_jsonl
from artifacts.keys import digest_of
from artifacts.packs import RecordSet, refresh_together
from artifacts.plurals import counted
from flows.checkpoint.precision import PartSettings
from flows.job.prepare import Job
from flows.ledger.namespaces import one_shot_namespace
from flows.media.generated_files import GeneratedFiles
from flows.media.media_files import MediaFile
from flows.options.commands import CaptionConfig
from flows.options.text import EngineOptions, PromptOptions, TextOptions
from flows.results.captions import ALL_REASONING, readable_captions, unanswered, unrejected
from stages.decode.generation import SamplingParams
from stages.process.job import StageSpec
from stages.summarize import SUMMARY

SUMMARIES = "summaries.jsonl"
"""File of the summaries, in the folder of a run."""
TEXT_SETTINGS = (
    "sampling", "temperature", "top_p", "top_k", "seed", "beams", "repetition_penalty",
    "presence_penalty", "no_repeat_ngram", "avoid", "system",
)  # fmt: skip
"""Sampling settings of captions that also apply to other texts, such as summaries."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SummaryRow:
    """One line of `summaries.jsonl`: the summary of one video."""

    media_path: str
    """Path relative to the folder given, or the file's name; POSIX."""
    source: str
    """The command line argument that selected the file."""
    summary: str
    chapters: tuple[dict[str, Any], ...]
    """Start and end in seconds, and text, of each chapter. Chapters cover the whole video."""
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
        kept = [*unrejected(captions)]
        if kept and len(captions) >= len(tasks) - lost:
            texts = [(each.start, each.end, each.caption) for each in kept]
            yield SummaryInput(file=file, digest=medium.digest, texts=texts, lost=lost)


def text_sampling_params(job: Job) -> SamplingParams:
    """Return the caption settings that also apply to other texts."""
    non_defaults = SamplingParams.of(job.config).non_defaults
    return SamplingParams(
        **{name: value for name, value in non_defaults.items() if name in TEXT_SETTINGS}
    )


def _summary_settings(job: Job) -> dict[str, Any]:
    """Return the settings of the key of a summary, without model and captions."""
    config = job.config
    return {
        "asked": PromptOptions.of(config).summary_prompt or SUMMARY,
        "max_new_tokens": EngineOptions.of(config).max_new_tokens,
        "generation": dict(*text_sampling_params(job).key_fields),
        "strip_think": TextOptions.of(config).strip_think and 2,
    }


class Summaries:
    """The summaries of one job that are in the store."""

    def __init__(self, job: Job, stage: StageSpec) -> None:
        self._job = job
        self._stage = stage
        self._settings = _summary_settings(job)
        every = job.model.settings["language"]
        self._records = [(s, self._record_set(s, stage.writes)) for s in every]
        self._failures = [(s, self._record_set(s, "failures")) for s in every]

    def namespace(self, settings: PartSettings) -> str:
        """Return the namespace of summaries in these settings."""
        return one_shot_namespace(self._stage, self._job.model, settings)

    def key(self, video: SummaryInput, settings: PartSettings) -> str:
        """Return the key of a video's summary in these settings. It does not depend on the context
        length: a summary made with any context counts."""
        return digest_of([self.namespace(settings), self._settings, video.texts])

    def find(self, video: SummaryInput) -> tuple[PartSettings, Mapping[str, Any]] | None:
        """Return the summary of a video in the best settings; None if there is none."""
        for settings, records in self._records:
            if (key := self.key(video, settings)) in records:
                return settings, records.meta(key)
        return None

    def is_missing(self, video: SummaryInput) -> bool:
        """Return whether a video has no summary and no failure."""
        return self.find(video) is None and self._failure(video) is None

    def _failure(self, video: SummaryInput) -> Mapping[str, Any] | None:
        for settings, records in self._failures:
            if (key := self.key(video, settings)) in records:
                return records.meta(key)
        return None

    def failures(self) -> Iterator[Failure]:
        """Yield the failures of videos that have no summary, or a part that is all reasoning."""
        for video in summary_inputs(self._job):
            why, found = self._failure(video), self.find(video)
            if found is not None:
                why = ALL_REASONING if found[1].get("reasons") else None
            if why is not None:
                yield Failure(
                    media_path=video.file.media_path,
                    source=video.file.source,
                    stage=self._stage.name,
                    error=why["kind"],
                    message=why["message"],
                    hint=why["hint"],
                )

    def forget_failures(self) -> None:
        """Drop the stored failures, so that those videos are retried."""
        for settings, records in self._failures:
            records.drop([self.key(video, settings) for video in summary_inputs(self._job)])

    def refresh(self) -> None:
        """Load records that were published since."""
        refresh_together(*(records for _, records in [*self._records, *self._failures]))

    def _record_set(self, settings: PartSettings, kind: str) -> RecordSet:
        return RecordSet(self._job.store, kind, self.namespace(settings))

    def rows(self) -> Iterator[SummaryRow]:
        """Yield the rows of the stored summaries."""
        for video in summary_inputs(self._job):
            if (found := self.find(video)) is not None and not found[1].get("reasons"):
                settings, meta = found
                yield SummaryRow(
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

    def write(self) -> list[SummaryRow]:
        """Write the stored summaries, and return them. Raises EnvironmentFault."""
        rows = list(self.rows())
        own = GeneratedFiles(self._job.store, out=self._job.out)
        own.renew(self._job.out / SUMMARIES, partial(write_jsonl, rows=rows))
        return rows


def _warnings(video: SummaryInput, meta: Mapping[str, Any]) -> Iterator[str]:
    if video.lost:
        yield f"without a caption, and left out: {counted(video.lost, 'chunk')}"
    if meta["cut"]:
        yield f"too long for the model, and cut: {counted(meta['cut'], 'text')}"
    if meta["ended"] == "length":
        yield "cut at the token limit: raise --max-new-tokens"
