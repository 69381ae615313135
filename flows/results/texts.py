"""Tells the fate of the text files that were written for people; writes none."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from artifacts.words import counted, first_of


@dataclass(kw_only=True, slots=True)
class Texts:
    """The fate of the files of one form in one place."""

    form: str
    beside: bool
    """Whether they lie next to the media."""
    written: int = 0
    """Files that hold what is said now."""
    kept: list[str] = field(default_factory=list)
    """Names of those that people wrote or edited."""
    edited: list[str] = field(default_factory=list)
    """Names of those among them in which our part was edited, so that all of it is theirs."""
    people: int = 0
    """Files with words of people: kept ones, and those that hold what they corrected or wrote."""
    earlier: int = 0
    """Files of ours of an earlier run, about media of which not all is said now."""
    alike: list[str] = field(default_factory=list)
    """Names of media that have one stem, those of a stem in one entry."""
    others: int = 0
    """Files of that form in `OUT` that are about no medium of this run."""

    def to_json(self) -> dict[str, Any]:
        """Return the counts, as `run.json` keeps them."""
        return {
            "format": self.form,
            "beside": self.beside,
            "written": self.written,
            "kept": len(self.kept),
            "earlier": self.earlier,
            "others": self.others,
        }

    def notes(self) -> Iterator[str]:
        """Yield what a person should know of them."""
        noun = f".{self.form} file"
        if self.kept:
            yield (
                f"kept as people wrote or edited them: {counted(len(self.kept), noun)} "
                f"({first_of(self.kept)}); --overwrite replaces them"
            )
        if self.edited:
            yield (
                f"all of it theirs, since the caption in it was edited: "
                f"{counted(len(self.edited), noun)} ({first_of(self.edited)})"
            )
        if self.alike:
            yield (
                f"{first_of(self.alike)} differ only in their suffix: a trainer that looks for "
                "one .txt beside both, as sd-scripts does, cannot tell them apart, and finds none "
                "of theirs; rename them"
            )
        if self.earlier and self.beside and not self.written:
            yield (
                f"of an earlier run: {counted(self.earlier, noun)} beside the media; "
                f"--format {self.form} --beside writes them anew"
            )
        elif self.earlier:
            yield f"of an earlier run: {counted(self.earlier, noun)}, not all is captioned yet"
        if self.others:
            yield f"about nothing in this run: {counted(self.others, noun)} in the same folder"
