"""Options of the files that a command writes."""

from dataclasses import dataclass
from typing import Annotated

from artifacts.disk.names import TEXT_FORMATS
from artifacts.errors import UsageError, excluding
from artifacts.options import Option, OptionGroup
from artifacts.timecodes import CLOCKS, START
from flows.core.options.formats import FILES, FORMATS, REPLACE, RULES


@dataclass(frozen=True, kw_only=True)
class OutputOptions(OptionGroup):
    """The written files, and the treatment of files that users wrote or edited."""

    format: Annotated[
        tuple[str, ...],
        Option(f"formats besides jsonl: {', '.join(FORMATS[1:])}", FILES, "F,F", values=FORMATS),
    ] = ()
    """Formats besides jsonl."""
    beside: Annotated[bool, Option("write txt, vtt and srt next to the media files", FILES)] = False
    """Write txt, vtt and srt next to the media file instead of into `out`."""
    clock: Annotated[
        str,
        Option(
            f"times of vtt and srt: {'|'.join(CLOCKS)} [%(default)s]", FILES, "C", values=CLOCKS
        ),
    ] = START
    """What times of vtt and srt count from: the `start` of the file, its `timecode`, or midnight of
    the day on which it was recorded (`wall`)."""
    overwrite: Annotated[bool, Option("same as --existing replace", FILES)] = False
    """Same as `existing` with `replace`."""
    existing: Annotated[
        str | None,
        Option(
            f"files that users wrote or edited: {'|'.join(RULES)} [keep]",
            FILES,
            "RULE",
            values=RULES,
        ),
    ] = None
    """Treatment of files that users wrote or edited: `keep` or `replace`. None: `keep`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beside and not {*self.format} & {*TEXT_FORMATS}:
            raise UsageError(
                "--beside needs a format with one file per medium",
                hint=f"Add --format {','.join(TEXT_FORMATS)}, or one of them",
            )
        if self.overwrite and self.existing not in (None, REPLACE):
            raise excluding("--overwrite", f"--existing {self.existing}")

    @property
    def replaces(self) -> bool:
        """Return whether files that users wrote or edited are replaced."""
        return self.overwrite or self.existing == REPLACE
