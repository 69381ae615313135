"""Has ONNX graphs made of the towers of a tiny model, as an export makes them, and says whether
these make what the towers make, with inputs that the export did not see too."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from artifacts.errors import PenstockError
from artifacts.schema import HalfName
from stages.export.graphs.make import MAX_DIFFERENCE, Encoders, Trial, difference, make_graphs
from stages.models.halves.features import encode, text_vectors
from stages.models.halves.load import load_half
from tests.support import dual_encoders
from tests.support.tiny_families import FAMILIES

Run = Callable[[Any], Any]
"""Function that has a half compute."""
Sizes = Sequence[tuple[int, int]]
LIMIT = MAX_DIFFERENCE["fp32"]
TRACED = (2, 1, 4)
"""Rows that an export shows a half; graphs are made of the first."""
UNSEEN = 3
"""Rows that it does not."""
UNLIKE = {
    "seen": (((4, 4), (6, 10), (10, 4)), ((4, 8), (12, 4))),
    "unseen": (((8, 6), (2, 14)), ((12, 12), (4, 16), (8, 8))),
}
"""Height and width, in patches, of pictures that windows cut unequally, and such as merge twice."""
GRIDS = {"_grid_thw": 0, "_grid_hw": 0, "target_sizes": -1, "target_sizes_videos": -1}
"""How a name of pictures' sizes in patches ends → axis on which patches of all follow another."""
MIXED = ("mixed", "uneven", "textrow")
COLUMNS = ("image", "video", "batch 4", "mixed")
AGREES = "agrees"


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphVerdict:
    """What came of the graphs of one half."""

    name: str
    towers: tuple[str, ...] = ()
    """Paths of the towers that graphs stand for."""
    graphs: int = 0
    results: Mapping[str, str]
    """Name of each way that was tried → `agrees`, `refused: …`, or `apart: …`."""
    refused: str = ""
    """Why no graphs came of an export, or which calls they refuse."""
    apart: float = 0.0
    """Most that they differ from the towers, in parts of the largest number."""

    @property
    def result(self) -> str:
        """`agrees`, `refused: …`, or `differs: …`, which an export must have refused."""
        if self.refused:
            return f"refused: {self.refused}"
        return AGREES if self.apart <= LIMIT else f"differs: {self.apart:.2g}"

    def column(self, name: str) -> str:
        """One word for the ways of one kind; empty where the model has none."""
        ways = [way for way in self.results if way.startswith(name) or f", {name}" in way]
        found = {self.results[way].partition(":")[0] for way in ways}
        return max(found, default="", key=("", AGREES, "refused", "apart").index)


def judge_graphs(family: str, folder: Path) -> GraphVerdict:
    """Build a family, save it to `folder`, and judge graphs of its vision half."""
    torch.manual_seed(0)
    FAMILIES[family]()[0].save_pretrained(folder / "model")
    seen = _ways(family, TRACED, UNLIKE["seen"])
    unseen = _ways(family, (UNSEEN, *TRACED), UNLIKE["unseen"], seed=9)
    return _judged(family, folder, "vision", seen, {f"{n} again": r for n, r in unseen.items()})


def judge_dual_graphs(name: str, half: HalfName, folder: Path) -> GraphVerdict:
    """Build a dual encoder, save it to `folder`, and judge graphs of one of its halves."""
    if (why := dual_encoders.refusal(dual_encoders.names()[name])) is not None:
        return GraphVerdict(name=name, results={}, refused=why)
    dual_encoders.tiny(name).save_pretrained(folder / "model")
    torch.manual_seed(1)

    def way(rows: int) -> Run:
        if half == "vision":
            shown = dual_encoders.pictures(name, rows)
            return lambda model: encode(model, shown)
        request = dual_encoders.texts(rows)
        return lambda model: text_vectors(model, request)

    kind = "image" if half == "vision" else "texts"
    seen = {_named(kind, rows): way(rows) for rows in TRACED}
    unseen = {f"{_named(kind, rows)} again": way(rows) for rows in (UNSEEN, *TRACED)}
    return _judged(name, folder, half, seen, unseen)


def _judged(
    name: str, folder: Path, half: HalfName, seen: Mapping[str, Run], unseen: Mapping[str, Run]
) -> GraphVerdict:
    """Make graphs with the ways that are seen, and try all."""
    try:
        model = load_half(folder / "model", half, dtype=torch.float32)
    except PenstockError as error:
        return GraphVerdict(name=name, results={}, refused=error.message)
    made_by = {way: _try(run, model) for way, run in (*seen.items(), *unseen.items())}
    expected = {way: features for way, features in made_by.items() if features is not None}
    trials = [Trial(name=way, run=run) for way, run in seen.items() if way in expected]
    graphs = folder / "graphs"
    graphs.mkdir()
    try:
        made, _ = make_graphs(model, half, trials, graphs, "fp32")
    except PenstockError as error:
        return GraphVerdict(name=name, results={}, refused=error.message)
    return _compared(name, made, model, {**seen, **unseen}, expected)


def _compared(
    name: str, made: Encoders, model: Any, ways: Mapping[str, Run], expected: Mapping[str, Any]
) -> GraphVerdict:
    results, furthest = {}, 0.0
    reasons: dict[str, str] = {}
    for way, features in expected.items():
        try:
            apart = difference(features, ways[way](model))
        except PenstockError as error:
            results[way] = f"refused: {error.message}"
            reasons.setdefault(error.message, way.removesuffix(" again"))
            continue
        furthest = max(furthest, apart)
        results[way] = AGREES if apart <= LIMIT else f"apart: {apart:.2g}"
    return GraphVerdict(
        name=name,
        towers=tuple(made),
        graphs=sum(len(tower.graphs) for tower in made.values()),
        results=results,
        refused="; ".join(f"{way}: {why}" for why, way in reasons.items()),
        apart=furthest,
    )


def _try(run: Run, model: Any) -> Any:
    """What the towers make; nothing where the model itself fails."""
    try:
        return run(model)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
        return None


def _ways(
    family: str, rows: Sequence[int], unlike: Sequence[Sizes], seed: int = 0
) -> dict[str, Run]:
    """Every way in which variants of a family show media, by what it shows."""
    found: dict[str, Run] = {}
    for kind, suffix in (("image", ""), ("video", ":video")):
        two = FAMILIES.get(f"{family}{suffix}:b2")
        if not isinstance(two, functools.partial):
            continue
        for count in rows:
            build = functools.partial(two.func, count, *two.args[1:], **two.keywords)
            found[_named(kind, count)] = _shown(inputs := _inputs(build, seed + count))
            for sizes in unlike if count == rows[0] else ():
                if others := _of_sizes(inputs, sizes):
                    found[f"mixed {kind}s {sizes}"] = _shown({**inputs, **others})
    for suffix in MIXED:
        if f"{family}:{suffix}" in FAMILIES:
            found[f"mixed ({suffix})"] = _shown(_inputs(FAMILIES[f"{family}:{suffix}"], seed))
    return found


def _named(kind: str, rows: int) -> str:
    return f"{kind}, batch {rows}" if rows > 1 else f"{kind}, one"


def _inputs(build: Callable[[], Any], seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    inputs: dict[str, Any] = build()[1]
    return inputs


def _shown(inputs: Mapping[str, Any]) -> Run:
    return lambda half: encode(half, inputs)


def _of_sizes(inputs: Mapping[str, Any], sizes: Sizes) -> dict[str, Any]:
    """Media of these sizes, where the patches of all are in one row."""
    found: dict[str, Any] = {}
    for name, grids in inputs.items():
        pixels = f"pixel_values{'_videos' if 'video' in name else ''}"
        axes = [axis for ending, axis in GRIDS.items() if name.endswith(ending)]
        if not axes or pixels not in inputs:
            continue
        found[name] = torch.tensor([[*grids[0, :-2], *size] for size in sizes], dtype=grids.dtype)
        shape, before = list(inputs[pixels].shape), int(grids.prod(-1).sum())
        shape[axes[0]] = shape[axes[0]] * int(found[name].prod(-1).sum()) // before
        found[pixels] = torch.randn(shape)
    return found
