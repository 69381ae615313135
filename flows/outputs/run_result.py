"""Describes how a caption run ended, for its last line, for programs and for Prefect."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from artifacts.disk.json_shapes import Json
from artifacts.texts.captions import Failure
from artifacts.texts.edits import DECISIONS
from artifacts.wording import counted, first_of
from flows.core.job.away import AWAY
from flows.core.media.media_file import MediaFile
from flows.outputs.captions import MAYBE_UNABLE, SUMMARIES
from flows.outputs.run_wording import LISTED_WARNINGS, texts_line
from flows.outputs.text_files import user_texts_note
from flows.outputs.write import OutputCounts


@dataclass(kw_only=True, slots=True)
class RunEnd:
    """The result of a run without captions. Each kind of result also has `made` (how many items),
    `to_json` (for programs), `row` (of a table) and `line`."""

    out: Path
    """The output folder."""
    files: int
    """Number of requested files and sources."""
    failures: list[Failure] = field(default_factory=list)
    """What could not be done, one for each file."""
    warned: int = 0
    """Number of files that were read with warnings."""
    chunks: Mapping[MediaFile, int] | None = None
    """Number of chunks of each file that were written; None: there is no output of all chunks."""

    @property
    def exit_code(self) -> int:
        """Return 0 if all is done, 1 if some items failed."""
        return 1 if self.failures else 0

    @property
    def away(self) -> list[str]:
        """Return each folder that is away, and what is kept of it."""
        away = (failure for failure in self.failures if failure.error == AWAY)
        return [f"{failure.media_path} ({failure.message})" for failure in away]

    def outcome(self, made: Mapping[str, Json]) -> dict[str, Json]:
        """Return the outcome for programs, with the counts in `made`. Each failure is printed as an
        event of its own."""
        ended = {"failed": len(self.failures), "exit_code": self.exit_code}
        return {"out": str(self.out), "files": self.files, **made, **ended}

    def failed_suffix(self, kind: str = "") -> str:
        """Return the end of a line with the numbers of files that failed or have warnings, and
        where those of this kind of products are; empty for none."""
        files, away = counted(self.files, "file"), self.away
        count = len(self.failures) - len(away)
        failed = f", {count} of {files} failed" if count else ""
        listed = LISTED_WARNINGS.get(kind, "")
        warned = f", {self.warned} of {files} with warnings{listed}" if self.warned else ""
        away_note = f"; away, --replace drops its rows: {first_of(away)}" if away else ""
        return f"{failed}{warned}{away_note}"


@dataclass(kw_only=True, slots=True)
class RunResult(RunEnd):
    """The result of a caption run."""

    limit: int
    """Maximum tokens per caption."""
    summaries: int | None = None
    """Number of summaries of videos; None: not requested."""
    empty_summaries: int = 0
    """How many of them, or of their chapters, have no words."""
    written: OutputCounts = field(default_factory=OutputCounts)
    """Number of captions written, by what became of them."""
    warnings: list[str] = field(default_factory=list)
    """Warnings about files and captions, one line each."""

    @property
    def captions(self) -> int:
        return self.written.captions

    @property
    def made(self) -> int:
        """Return the number of captions."""
        return self.captions

    def to_json(self) -> dict[str, Json]:
        summaries = {} if self.summaries is None else {"summaries": self.summaries}
        return self.outcome({**self.written.to_json(), **summaries, "warnings": self.warnings})

    def row(self) -> dict[str, Json]:
        return {"files": self.files, "captions": self.captions, "folder": str(self.out)}

    def line(self) -> str:
        line = f"{counted(self.captions, 'caption')} in {self.out / 'captions.jsonl'}"
        line += f" and {', '.join(self.written.others)}" if self.written.others else ""
        if self.summaries is not None:
            line += f", {counted(self.summaries, 'summary')} in {self.out / SUMMARIES}"
            if self.empty_summaries:
                line += f" ({self.empty_summaries} with texts without words: {MAYBE_UNABLE})"
        if self.written.cut:
            line += f", {self.written.cut} cut at {counted(self.limit, 'token')}"
        if self.written.unknown_ends:
            line += f", {self.written.unknown_ends} ended by the server for an unknown reason"
        decided = [(getattr(self.written, name), name) for name in DECISIONS]
        if named := [f"{count:,} {name}" for count, name in decided if count]:
            line += f", {', '.join(named)}"
        for texts in self.written.texts:
            line += f", {texts_line(texts.record)}"
        ended = self.failed_suffix("captions")
        return f"{line}{user_texts_note(self.written.user_texts)}{ended}"

    __repr__ = line

    def notes(self, max_tokens: int | None = None) -> Iterator[str]:
        """Yield notes and advice for the user about the outputs. `max_tokens`: longest answer that
        fits into the context; None: unlimited."""
        if self.written.cut:
            longer = 2 * self.limit if max_tokens is None else min(2 * self.limit, max_tokens)
            advice = f"--max-new-tokens {longer} regenerates only those"
            if longer <= self.limit:
                advice = "the model's context has no room for longer ones"
            cut = counted(self.written.cut, "caption")
            yield f"{cut} reached the limit of {counted(self.limit, 'token')}: {advice}"
        if self.written.shared_edits:
            copy, first = next(iter(self.written.shared_edits.items()))
            more = len(self.written.shared_edits) - 1
            others = f" ({counted(more, 'more such file')})" if more else ""
            yield (
                f"an edit counts for all files of the same content: that of {first} also for "
                f"{copy}{others}. To leave out only a copy, delete that file"
            )
        if self.written.unused_edits:
            yield self.written.unused_edits
        if self.written.rejected and any(texts.beside for texts in self.written.texts):
            yield (
                f"{counted(self.written.rejected, 'caption')} rejected: these media get no text, "
                "but a trainer that reads their folder still takes them"
            )
        for texts in self.written.texts:
            yield from texts.notes()
        if self.summaries is None and (self.out / SUMMARIES).exists():
            yield f"from an earlier run: {SUMMARIES} in {self.out}; --summary rewrites it"
        if self.written.earlier:
            yield (
                f"from an earlier run: {', '.join(self.written.earlier)} in {self.out}; "
                f"--format {','.join(self.written.earlier)} rewrites it, but what you edited"
            )
