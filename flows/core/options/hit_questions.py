"""Options of `penstock search` that put a question about each hit."""

from dataclasses import dataclass
from typing import Annotated

from artifacts.errors import UsageError
from artifacts.options import Option
from flows.core.options.formats import QUESTIONS
from flows.core.options.text import TrustOptions


@dataclass(frozen=True, kw_only=True)
class AskHitsOptions(TrustOptions):
    """The question about each hit of a search."""

    ask: Annotated[
        str,
        Option(
            "folder of captions: ask their model whether a hit is right",
            QUESTIONS,
            "DIR",
            path=True,
        ),
    ] = ""
    """Output folder of captions of the same media. Its model judges each hit, on the
    features that its run stored; empty: none is judged."""
    questions: Annotated[
        str,
        Option(
            "file with the question [Is TEXT seen in this part?]",
            QUESTIONS,
            "F",
            path=True,
            or_text=True,
        ),
    ] = ""
    """File with one question in TOML or JSON, or its JSON: yes-no, or labels, of which those that
    have the text count; empty: whether the text is seen."""
    label: Annotated[str, Option("labels with this text count [TEXT]", QUESTIONS, "TEXT")] = ""
    """Text of the labels whose probability counts; empty: the searched text."""
    least: Annotated[
        float, Option("leave out hits with a smaller p", QUESTIONS, "P", least=0, most=1)
    ] = 0.0
    """Probability from which on a hit is kept."""
    refine: Annotated[
        bool, Option("move the borders of hits, for questions about time", QUESTIONS)
    ] = False
    """Whether the borders of a moment are moved to where the answer changes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("questions", "label", "least", "refine"):
            if getattr(self, name) and not self.ask:
                hint = "Add --ask DIR, the output folder of `penstock caption` over the same media"
                raise UsageError(f"--{name} needs --ask", hint=hint)
