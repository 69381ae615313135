"""Gathers what the report shows of how near a checkpoint in few bits is to its original; draws
nothing."""

from collections.abc import Iterator, Mapping
from typing import Any

from artifacts.words import counted
from flows.results.export_read import ExportFound
from stages.export.parity import FRAMES, GATES, Gate

COLUMNS = ("figure", "measured", "must be", "")
MARKS = {True: "✓", False: "✕"}


def parity_facts(export: ExportFound) -> dict[str, Any] | None:
    """Return the verdict with each figure beside its bound, and what is drawn of single captions
    and chunks; None while it is not judged."""
    if (parity := export.parity) is None:
        return None
    gates = [gate for gate in GATES if f"{gate.group}.{gate.name}" in parity["gates"]]
    return {
        "passed": parity["passed"],
        "verdict": export.verdict(),
        "columns": COLUMNS,
        "rows": [*(_row(parity, gate) for gate in gates), *_told(parity)],
        "plots": [*_divergence(parity), *_cosine(parity)],
    }


def export_about(export: ExportFound) -> Iterator[tuple[str, str]]:
    """Yield what was exported, and to where."""
    recipe = export.parity["recipe"] if export.parity is not None else {}
    yield "checkpoint", str(export.checkpoint)
    if recipe:
        parts = recipe.get("parts")
        of = f" of {', '.join(map(str, parts))}" if isinstance(parts, list) else ""
        group = f", {recipe['group']} columns a scale" if recipe.get("group") else ""
        yield "written as", f"{recipe.get('kind', '?')}{of}{group}"


def _row(parity: Mapping[str, Any], gate: Gate) -> tuple[str, str, str, str]:
    value, bound = parity[gate.group][gate.name], parity["gates"][f"{gate.group}.{gate.name}"]
    holds = value >= bound if gate.at_least else value <= bound
    sign = "≥" if gate.at_least else "≤"
    return gate.words, f"{value:.5g}", f"{sign} {bound:g}", MARKS[holds]


def _told(parity: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Yield the frames, which are too few or not, and figures that decide nothing."""
    seen = parity["frames"]
    yield "frames that were seen", f"{seen:,}", f"≥ {FRAMES}", MARKS[seen >= FRAMES]
    if (features := parity.get("features")) is not None:
        yield "plain cosine of features", f"{features['cosine']:.5g}", "-", ""
        yield "rows of features that were compared", f"{features['rows']:,}", "-", ""
    if (text := parity.get("text")) is not None:
        yield "share of captions the same throughout", f"{text['captions_as_native']:.5g}", "-", ""
        yield "captions", f"{text['captions']:,}", "-", ""
        yield "tokens", f"{text['tokens']:,}", "-", ""


def _divergence(parity: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    text = parity.get("text", {})
    if values := text.get("by_caption"):
        bound = parity["gates"].get("text.divergence")
        all_of = counted(text["captions"], "caption")
        yield _plot("Divergence of each caption, nats a token", values, all_of) | {
            "low": 0.0,
            "high": None,
            "lines": _lines(text["divergence"], bound, "at most"),
        }


def _cosine(parity: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    features = parity.get("features", {})
    if values := features.get("by_chunk"):
        bound = parity["gates"].get("features.centred_mean")
        all_of = counted(features.get("chunks", len(values)), "chunk")
        yield _plot("Centred cosine of each chunk's features", values, all_of) | {
            "low": None,
            "high": 1.0,
            "lines": _lines(features["centred_mean"], bound, "at least"),
        }


def _plot(title: str, values: Mapping[str, float], all_of: str) -> dict[str, Any]:
    ranked = sorted(values.items(), key=lambda one: one[1])
    return {"title": title, "values": ranked, "of": all_of}


def _lines(mean: float, bound: float | None, words: str) -> list[tuple[str, float, str]]:
    """Return the levels that a plot has: name, value, and how it is drawn."""
    found = [(f"mean {mean:.3g}", mean, "planned")]
    if bound is not None:
        found.append((f"it must be {words} {bound:g}", bound, "budget"))
    return found
