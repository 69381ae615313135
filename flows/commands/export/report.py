"""Gathers the report's section on an export: how it compares with the original."""

from collections.abc import Iterator, Mapping
from typing import Any

from artifacts.wording import counted
from stages.export.parity import FRAMES, GATES, ParityThreshold

COLUMNS = ("figure", "measured", "must be", "")
MARKS = {True: "✓", False: "✕"}


def parity_facts(verdict: str, parity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the verdict, each figure with its bound, and the plots of captions and chunks."""
    gates = [gate for gate in GATES if f"{gate.group}.{gate.name}" in parity["gates"]]
    return {
        "passed": parity["passed"],
        "verdict": verdict,
        "columns": COLUMNS,
        "rows": [*(_parity_row(parity, gate) for gate in gates), *_other_figures(parity)],
        "plots": list(_plots(parity)),
    }


def _parity_row(parity: Mapping[str, Any], gate: ParityThreshold) -> tuple[str, str, str, str]:
    value, bound = parity[gate.group][gate.name], parity["gates"][f"{gate.group}.{gate.name}"]
    passes = value >= bound if gate.is_minimum else value <= bound
    sign = "≥" if gate.is_minimum else "≤"
    return gate.label, f"{value:.5g}", f"{sign} {bound:g}", MARKS[passes]


def _other_figures(parity: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Yield the number of frames with its minimum, and figures without a bound."""
    seen = parity["frames"]
    yield "frames compared", f"{seen:,}", f"≥ {FRAMES}", MARKS[seen >= FRAMES]
    if (features := parity.get("features")) is not None:
        yield "plain cosine of features", f"{features['cosine']:.5g}", "-", ""
        yield "feature rows compared", f"{features['rows']:,}", "-", ""
    if (text := parity.get("text")) is not None:
        yield "share of identical captions", f"{text['captions_as_native']:.5g}", "-", ""
        yield "captions", f"{text['captions']:,}", "-", ""
        yield "tokens", f"{text['tokens']:,}", "-", ""


def _plots(parity: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    divergence = "Divergence of each caption, nats per token"
    cosine = "Centred cosine of each chunk's features"
    for part, noun, name, title, low, high, bound_text in (
        ("text", "caption", "divergence", divergence, 0.0, None, "at most"),
        ("features", "chunk", "centred_mean", cosine, None, 1.0, "at least"),
    ):
        if measured := parity.get(part):
            values = measured[f"by_{noun}"]
            yield {
                "title": title,
                "values": sorted(values.items(), key=lambda one: one[1]),
                "of": counted(measured[f"{noun}s"], noun),
                "low": low,
                "high": high,
                "lines": _lines(measured[name], parity["gates"].get(f"{part}.{name}"), bound_text),
            }


def _lines(mean: float, bound: float | None, bound_text: str) -> list[tuple[str, float, str]]:
    lines = [(f"mean {mean:.3g}", mean, "planned")]
    if bound is not None:
        lines.append((f"must be {bound_text} {bound:g}", bound, "budget"))
    return lines
