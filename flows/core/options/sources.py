"""Options that select media files."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated

from artifacts.errors import UsageError
from artifacts.option_texts import DURATION_TEXT, parse_duration
from artifacts.options import Option, OptionGroup
from flows.core.options.formats import FILES


@dataclass(frozen=True, kw_only=True)
class SourceOptions(OptionGroup):
    """The media files of a run."""

    sources: Annotated[
        tuple[str, ...],
        Option(
            "files, folders, globs, URLs, or lists (@list.txt)",
            positional=True,
            nargs="*",
            not_empty="Name files or folders; . is this folder",
            path=True,
            or_text=True,
        ),
    ]
    """Files, folders, globs, or lists of them (`.txt`, `.json`, `.csv`, `@list`). A plan for a
    model alone has none."""
    recursive: Annotated[bool, Option("search folders recursively", FILES)] = False
    """Search folders recursively."""
    extensions: Annotated[
        tuple[str, ...], Option("only files with these suffixes", FILES, "mp4,mkv")
    ] = ()
    """Suffixes of the files taken from folders and globs; empty: all known ones."""
    limit: Annotated[int | None, Option("at most N files, spread", FILES, "N", above=0)] = None
    """Maximum number of media files, spread evenly over all that the sources name."""
    min_age: Annotated[
        float | None,
        Option(
            "leave out files written less than this ago, e.g. 10m",
            FILES,
            "TIME",
            least=0,
            text=DURATION_TEXT,
            parse=partial(parse_duration, option="--min-age"),
        ),
    ] = None
    """Seconds. Local files that were written, or came, less than this ago are left out of the run,
    without being failures. None: all files are taken."""

    def check_sources(self) -> None:
        """Raise UsageError when no source is given."""
        if not self.sources:
            raise UsageError("no source given", hint="Name files or folders, such as VIDEOS/")
