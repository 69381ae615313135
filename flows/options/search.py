"""Options of `penstock search`."""

from dataclasses import dataclass
from typing import Annotated

from artifacts.errors import UsageError
from artifacts.options import Option, OptionGroup
from flows.options.headings import MODEL
from flows.options.model import TRUST_HELP, MemoryOptions, StoreOptions

WHERE = "\"path like '%%.mp4' and time < 60\""


@dataclass(frozen=True, kw_only=True)
class SearchQuery(OptionGroup):
    """The query of a search."""

    what: Annotated[str, Option("text, or an image file", metavar="TEXT|IMAGE", positional=True)]
    """A text, or an image file."""
    top: Annotated[int, Option("number of hits [%(default)s]", metavar="K", least=1)] = 10
    """Maximum number of hits."""
    without: Annotated[
        tuple[str, ...],
        Option(
            "exclude hits closer to this; repeatable",
            metavar="TEXT",
            repeated=True,
            flag="--not",
        ),
    ] = ()
    """Texts or image files. Hits that are closer to one of them are excluded."""
    where: Annotated[str, Option(f"filter condition: {WHERE}", metavar="EXPR")] = ""
    """Filter condition on the rows; empty: all rows."""
    moments: Annotated[bool, Option("merge adjacent frames of a video")] = False
    """Whether adjacent matching frames of a video become one hit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for text in (self.what, *self.without):
            if not text.strip():
                raise UsageError("the search text is empty", hint="Give words or an image file")


@dataclass(frozen=True, kw_only=True)
class SearchPlace(MemoryOptions, StoreOptions):
    """Model and store locations, and the memory limits of a half."""

    model: Annotated[str, Option("hub id or folder [the index's model]", MODEL, "M", path=True)] = (
        ""
    )
    """Hub id or folder; empty: the model of the index."""
    trust_remote_code: Annotated[bool, Option(TRUST_HELP, MODEL)] = False
    """Allow code that comes with the checkpoint to run, and pickled weights to be loaded."""
