"""What the benchmark of plans prints: planned and measured bytes of each case; measures nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks._plan_cases import Case

MIB = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A case with both numbers."""

    case: Case
    planned: int
    measured: int
    """Bytes."""
    seconds: float

    @property
    def error(self) -> float:
        return self.planned / self.measured - 1


def _training(case: Case) -> str:
    """Return what is told of a training in a row."""
    if not case.rank:
        return ""
    again = ", computed again" if case.recompute else ""
    return f", rank {case.rank}, {case.new} tokens{again}, {case.optimizer}"


def table(rows: Sequence[Row]) -> list[str]:
    """Markdown."""
    lines = [
        "| model | stage | precision | batch | frames | planned MiB | measured MiB | error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        case = row.case
        lines.append(
            f"| {case.shape} | {case.stage}{', streamed' if case.block else ''}"
            f"{', in pieces' if case.prefill else ''}{', in slots' if case.slots else ''}"
            f"{_training(case)} | "
            f"{case.precision} | {case.batch} | {case.frames} | "
            f"{row.planned / MIB:,.0f} | {row.measured / MIB:,.0f} | {row.error:+.1%} |"
        )
    worst = max(rows, key=lambda row: abs(row.error))
    small = sum(row.measured < 500e6 for row in rows)
    lines.append(f"\nworst {worst.error:+.1%} of {len(rows)} cases, {small} of them below 500 MB")
    return lines
