"""The manifest of a checkpoint's graphs: their encoders, their calls and their source.

The module imports no model library.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from artifacts.disk.json_records import read_json_file, read_record
from artifacts.disk.json_shapes import text
from artifacts.disk.json_types import Count, Number
from artifacts.errors import EnvironmentFault
from artifacts.schema import HalfName
from stages.models.graphs import FOLDER

FILE = "graphs.json"
"""Name of the manifest file in the folder of the graphs."""
FORMAT = 1
"""Format version, raised when a program that knows another would misread the file."""
EXPORT_HINT = "Export it again: penstock export MODEL --to onnx --out DIR"


@dataclass(frozen=True, kw_only=True, slots=True)
class Graph:
    """One graph: an encoder with one form of call."""

    file: str
    """Name of its file, in the folder of the graphs."""
    inputs: Mapping[str, Sequence[Count]]
    """Name of each input tensor → its shape; 0 where an axis may have any length."""
    fixed: Mapping[str, Any]
    """Values of the non-tensor arguments; the graph is valid only for these."""
    output: Mapping[str, Any]
    """The encoder's output, with the name of each tensor in its place."""
    names: tuple[str, ...]
    """Those names in the order of the graph's outputs."""
    quantized: Count = 0
    """Number of matrix products that are computed in 8 bit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphEncoder:
    """An encoder that graphs compute."""

    path: str
    """Its path in the model."""
    class_name: str
    parameters: Count
    """Number of its parameters in the checkpoint."""
    packed: bool
    """Whether it takes all images in one row."""
    graphs: tuple[Graph, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class HalfGraphs:
    """The graphs of one half."""

    precision: str
    """`fp32`, `fp16` or `int8`."""
    weights: Mapping[str, str]
    """Name of each source weight file → SHA-256 of its content."""
    towers: tuple[GraphEncoder, ...]
    furthest: Number
    """Maximum difference from the encoders on noise, relative to the largest value."""
    nearness: Mapping[str, Any]
    """How close the results for texts are to those of the encoders; empty for images and videos."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphManifest:
    """All graphs of a checkpoint."""

    files: Mapping[str, str]
    """Name of each file beside the manifest → SHA-256 of its content."""
    sizes: Mapping[str, Count]
    """Name of each of those files → its size in bytes."""
    halves: Mapping[HalfName, HalfGraphs]
    made_by: Mapping[str, str]
    """Name of each library → its version."""

    def __post_init__(self) -> None:
        encoders = [encoder for half in self.halves.values() for encoder in half.towers]
        named = [*self.files, *(graph.file for encoder in encoders for graph in encoder.graphs)]
        if any(Path(name).name != name or name.startswith(".") for name in named):
            raise ValueError(f"{FILE} names a file outside its folder")

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}

    def files_of(self, half: HalfName) -> list[str]:
        """Return the names of the files of a half's graphs: graph files, and files of their
        external weights."""
        named = {graph.file for encoder in self.halves[half].towers for graph in encoder.graphs}
        return sorted(name for name in self.files if any(name.startswith(n) for n in named))


def read_manifest(model: Path) -> GraphManifest | None:
    """Return the manifest of a checkpoint's graphs; None if Penstock exported none. Raises
    EnvironmentFault."""
    path = model / FOLDER / FILE
    if not path.exists():
        return None
    fields = read_json_file(dict[str, Any], path, EXPORT_HINT)
    if (written := fields.pop("format", None)) != FORMAT:
        raise EnvironmentFault(
            f"{FILE} has format {written}, and this version reads {FORMAT}", hint=EXPORT_HINT
        )
    try:
        if not text(json.dumps(fields, ensure_ascii=False)):  # it could be neither shown nor a key
            raise TypeError("it has a string that is not Unicode")
        return read_record(GraphManifest, fields)
    except TypeError as error:
        raise EnvironmentFault(f"{path} cannot be read: {error}", hint=EXPORT_HINT) from error
