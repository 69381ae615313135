"""The rows of a GPU check: what was found beside what was expected. Imports no model library."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Verdict = Literal["ok", "differs", "skipped", "failed"]
PASSING: tuple[Verdict, ...] = ("ok", "skipped")
MIB = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One fact."""

    name: str
    expected: str
    found: str
    """What was found; why, where it was skipped; the last words, where it failed."""
    verdict: Verdict
    figures: Mapping[str, Any] = field(default_factory=dict)
    """The same as numbers with units in their names, for programs."""

    @property
    def values(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def cells(self) -> tuple[str, ...]:
        """As a line of a table."""
        return (self.name, self.expected, self.found, self.verdict)


def row(name: str, expected: str, found: str, good: bool, /, **figures: Any) -> Row:
    """What was found, and whether it is what was expected."""
    verdict: Verdict = "ok" if good else "differs"
    return Row(name=name, expected=expected, found=found, verdict=verdict, figures=figures)


def told(name: str, found: str, /, **figures: Any) -> Row:
    """Return a row that is only reported: no rule says what it should be."""
    return row(name, "told", found, bool(found), **figures)


def skipped(name: str, why: str, expected: str = "") -> Row:
    """A fact that cannot be found out here."""
    return Row(name=name, expected=expected, found=why, verdict="skipped")


def failed(name: str, words: str) -> Row:
    """A check that came to no answer."""
    return Row(name=name, expected="an answer", found=f"failed: {words}", verdict="failed")


def exit_status(rows: Iterable[Row]) -> int:
    """0 when nothing differs and nothing failed, else 1."""
    return 0 if all(each.verdict in PASSING for each in rows) else 1


def summary(rows: Iterable[Row]) -> str:
    """How many rows there are of each verdict, in words."""
    verdicts = [each.verdict for each in rows]
    order: tuple[Verdict, ...] = ("ok", "differs", "failed", "skipped")
    counts = [f"{verdicts.count(kind)} {kind}" for kind in order if kind in verdicts]
    return f"{len(verdicts)} rows: {', '.join(counts) or 'none'}"


def mib(count: float) -> str:
    """Bytes as people read them beside a card's size."""
    return f"{count / MIB:,.0f} MiB"


def one_line(text: str, most: int = 200) -> str:
    """Words that fit a cell."""
    return " ".join(text.split())[:most]
