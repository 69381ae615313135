"""The manifest of a checkpoint's graphs: their encoders, their calls and their source. Imports no
model library."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from artifacts.errors import EnvironmentFault
from artifacts.schema import Half
from artifacts.shapes import MapOf, anything, check, count, number, read_json, text
from stages.models.graphs import FOLDER

FILE = "graphs.json"
"""Name of the file that says all this, in the folder of the graphs."""
FORMAT = 1
"""Number that rises when an older version would read such a file otherwise."""
EXPORT_HINT = "Export it again: penstock export MODEL --to onnx --out DIR"


@dataclass(frozen=True, kw_only=True, slots=True)
class Graph:
    """One graph: an encoder with one form of call."""

    file: str
    """Name of its file, in the folder of the graphs."""
    inputs: Mapping[str, Sequence[int]]
    """Name of each tensor that it takes → its shape; 0 where an axis may have any length."""
    fixed: Mapping[str, Any]
    """Arguments that are no tensors, with which alone it may be called."""
    output: Mapping[str, Any]
    """What the tower gives back, with the name of each tensor at its place."""
    names: tuple[str, ...]
    """Those names, in the order of the graph's outputs."""
    quantized: int = 0
    """Products that are computed in 8 bit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphTower:
    """A part of a half that graphs compute."""

    path: str
    """Where it is in the model."""
    class_name: str
    parameters: int
    """Count of the numbers that it holds in the checkpoint."""
    packed: bool
    """Whether it takes all pictures in one row."""
    graphs: tuple[Graph, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class HalfGraphs:
    """The graphs of one half."""

    precision: str
    """`fp32`, `fp16` or `int8`."""
    weights: Mapping[str, str]
    """Name of each file of weights that they were made of → SHA-256 of its content."""
    towers: tuple[GraphTower, ...]
    furthest: float
    """Most that they differ from the towers on noise, in parts of the largest number."""
    nearness: Mapping[str, Any]
    """How near texts are to what the towers make of them; empty where media tell."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphManifest:
    """All graphs of a checkpoint."""

    files: Mapping[str, str]
    """Name of each file beside this one → SHA-256 of its content."""
    sizes: Mapping[str, int]
    """The same → its bytes."""
    halves: Mapping[Half, HalfGraphs]
    made_by: Mapping[str, str]
    """Name of a library → its version."""

    def to_json(self) -> dict[str, Any]:
        """Return it as the file has it."""
        return {"format": FORMAT, **asdict(self)}

    def files_of(self, half: Half) -> list[str]:
        """Return the names of the files of a half's graphs: each is alone, or has its numbers in
        another beside it."""
        named = {graph.file for tower in self.halves[half].towers for graph in tower.graphs}
        return sorted(name for name in self.files if any(name.startswith(n) for n in named))


GRAPH = {
    "file": text,
    "inputs": MapOf([count]),
    "fixed": MapOf(anything),
    "output": MapOf(anything),
    "names": [text],
    "quantized": count,
}
TOWER = {
    "path": text,
    "class_name": text,
    "parameters": count,
    "packed": lambda value: isinstance(value, bool),
    "graphs": [GRAPH],
}
HALF = {
    "precision": text,
    "weights": MapOf(text),
    "towers": [TOWER],
    "furthest": number,
    "nearness": MapOf(anything),
}
SHAPE = {
    "format": count,
    "files": MapOf(text),
    "sizes": MapOf(count),
    "halves": MapOf(HALF),
    "made_by": MapOf(text),
}


def read_manifest(model: Path) -> GraphManifest | None:
    """Return what is said of the graphs of a checkpoint; None where it has none of ours. Raises
    EnvironmentFault."""
    path = model / FOLDER / FILE
    if not path.exists():
        return None
    fields = read_json(path, SHAPE, EXPORT_HINT, _sound)
    halves = {half: _half(value) for half, value in fields["halves"].items()}
    given = {name: fields[name] for name in ("files", "sizes", "made_by")}
    return GraphManifest(**given, halves=halves)


def _sound(fields: Any) -> Any:
    """Return it when it can be of this version, and names no file elsewhere."""
    check(fields, SHAPE)
    if fields["format"] != FORMAT:
        raise EnvironmentFault(
            f"{FILE} is of format {fields['format']}, and this version reads {FORMAT}",
            hint=EXPORT_HINT,
        )
    named = [*fields["files"], *(g["file"] for g in _graphs_in(fields))]
    if any(Path(name).name != name or name.startswith(".") for name in named):
        raise EnvironmentFault(f"{FILE} names a file outside its folder", hint=EXPORT_HINT)
    return fields


def _graphs_in(fields: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for half in fields["halves"].values():
        for tower in half["towers"]:
            yield from tower["graphs"]


def _half(fields: Mapping[str, Any]) -> HalfGraphs:
    towers = []
    for tower in fields["towers"]:
        graphs = (Graph(**{**each, "names": tuple(each["names"])}) for each in tower["graphs"])
        towers.append(GraphTower(**{**tower, "graphs": tuple(graphs)}))
    return HalfGraphs(**{**fields, "towers": tuple(towers)})
