"""Gathers the report's section on an export: how it compares with the original."""

from collections.abc import Iterator, Mapping

from artifacts.disk.json_shapes import Json
from artifacts.wording import counted
from stages.export.parity import FRAMES, GATES, Parity

COLUMNS = ("figure", "measured", "must be", "")
MARKS = {True: "✓", False: "✕"}


def parity_facts(verdict: str, parity: Parity) -> dict[str, Json]:
    """Return the verdict, each figure with its bound, and the plots of captions and chunks."""
    return {
        "passed": parity.passed,
        "verdict": verdict,
        "columns": COLUMNS,
        "rows": [*_bounded_figures(parity), *_other_figures(parity)],
        "plots": list(_plots(parity)),
    }


def _bounded_figures(parity: Parity) -> Iterator[tuple[str, str, str, str]]:
    for gate in GATES:
        value, bound = parity.measured(gate), parity.gates.get(gate.key)
        if value is not None and bound is not None:
            passes = value >= bound if gate.is_minimum else value <= bound
            sign = "≥" if gate.is_minimum else "≤"
            yield gate.label, f"{value:.5g}", f"{sign} {bound:g}", MARKS[passes]


def _other_figures(parity: Parity) -> Iterator[tuple[str, str, str, str]]:
    """Yield the number of frames with its minimum, and figures without a bound."""
    yield "frames compared", f"{parity.frames:,}", f"≥ {FRAMES}", MARKS[parity.frames >= FRAMES]
    if (features := parity.features) is not None:
        yield "plain cosine of features", f"{features.cosine:.5g}", "-", ""
        yield "feature rows compared", f"{features.rows:,}", "-", ""
    if (text := parity.text) is not None:
        yield "share of identical captions", f"{text.captions_as_native:.5g}", "-", ""
        yield "captions", f"{text.captions:,}", "-", ""
        yield "tokens", f"{text.tokens:,}", "-", ""


def _plots(parity: Parity) -> Iterator[dict[str, Json]]:
    if (text := parity.text) is not None:
        yield {
            "title": "Divergence of each caption, nats per token",
            "values": _ranked(text.by_caption),
            "of": counted(text.captions, "caption"),
            "low": 0.0,
            "high": None,
            "lines": _lines(text.divergence, parity.gates.get("text.divergence"), "at most"),
        }
    if (features := parity.features) is not None:
        bound = parity.gates.get("features.centred_mean")
        yield {
            "title": "Centred cosine of each chunk's features",
            "values": _ranked(features.by_chunk),
            "of": counted(features.chunks, "chunk"),
            "low": None,
            "high": 1.0,
            "lines": _lines(features.centred_mean, bound, "at least"),
        }


def _ranked(values: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(values.items(), key=lambda one: one[1])


def _lines(mean: float, bound: float | None, bound_text: str) -> list[tuple[str, float, str]]:
    lines = [(f"mean {mean:.3g}", mean, "planned")]
    if bound is not None:
        lines.append((f"must be {bound_text} {bound:g}", bound, "budget"))
    return lines
