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

    what: Annotated[
        str, Option("words, or a picture's file", metavar="TEXT|IMAGE", positional=True)
    ]
    """A picture's file, or a text."""
    top: Annotated[int, Option("how many are told [%(default)s]", metavar="K", least=1)] = 10
    """Rows that are found at the most."""
    without: Annotated[
        tuple[str, ...],
        Option(
            "leave out what is nearer to this; more than once if need be",
            metavar="TEXT",
            repeated=True,
            flag="--not",
        ),
    ] = ()
    """Texts, or pictures' files: what is nearer to one of these is left out."""
    where: Annotated[str, Option(f"condition on the rows: {WHERE}", metavar="EXPR")] = ""
    """Condition on the rows; empty: all."""
    moments: Annotated[bool, Option("join frames of a video that stay near")] = False
    """Whether frames of a video that stay near are joined."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for text in (self.what, *self.without):
            if not text.strip():
                raise UsageError("the text to search for is empty", hint="Give words or a picture")


@dataclass(frozen=True, kw_only=True)
class SearchPlace(MemoryOptions, StoreOptions):
    """Model and store locations, and the memory limits of a half."""

    model: Annotated[str, Option("[the one that the index was made with]", MODEL, "M")] = ""
    """Hub id or folder; empty: the one that the index was made with."""
    trust_remote_code: Annotated[bool, Option(TRUST_HELP, MODEL)] = False
    """Allow code that comes with the checkpoint to run, and pickled weights to be loaded."""
