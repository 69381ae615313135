"""Reads what an ONNX file says of its inputs, its outputs and the files of its weights.

The file is protobuf, and is read by the numbers of its fields: ONNX Runtime would load all weights,
in a process that the parent must not be. Weights are skipped. Source: onnx.proto3.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from artifacts.disk.regular_files import open_regular

GRAPH = 7
INITIALIZER, INPUT, OUTPUT = 5, 11, 12
"""Fields of a graph."""
TENSOR_NAME, EXTERNAL_DATA = 8, 13
"""Fields of an initializer."""
TYPES = {1: "float32", 10: "float16"}
"""Numbers of the element types that a picture may have (TensorProto.DataType)."""
VARINT, EIGHT_BYTES, LENGTH, FOUR_BYTES = 0, 1, 2, 5
"""Types of protobuf's wire format."""
SKIPPED = {EIGHT_BYTES: 8, FOUR_BYTES: 4}


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphTensor:
    """An input or output of a graph."""

    name: str
    type: int
    """Number of its element type."""
    shape: tuple[int, ...]
    """Its dimensions; 0: any."""

    def __str__(self) -> str:
        return "x".join(str(size or "?") for size in self.shape) or "a single number"


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphHeader:
    """What the file of a graph says."""

    inputs: tuple[GraphTensor, ...]
    """Without those that have weights."""
    outputs: tuple[GraphTensor, ...]
    data: tuple[str, ...]
    """Paths, below the file's folder, of further files that hold weights."""


def read_header(path: Path) -> GraphHeader:
    """Read the header of an ONNX file. Raises OSError, and ValueError for what is none."""
    with open_regular(path) as file:
        # Not closed here: an error would still refer to parts of it.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        return _header(memoryview(mapped))
    except (IndexError, UnicodeDecodeError) as error:
        raise ValueError("it is no ONNX graph, or a part of one") from error


def _header(view: memoryview) -> GraphHeader:
    graph = next(iter(_parts(view, GRAPH)), None)
    if graph is None:
        raise ValueError("it has no graph")
    inputs, outputs = list[GraphTensor](), list[GraphTensor]()
    weights, data = set[str](), dict[str, None]()
    for number, part in _fields(graph):
        if not isinstance(part, memoryview):
            continue
        if number == INPUT:
            inputs.append(_tensor(part))
        elif number == OUTPUT:
            outputs.append(_tensor(part))
        elif number == INITIALIZER:
            weights.update(_text(name) for name in _parts(part, TENSOR_NAME))
            pairs = (dict(_fields(pair)) for pair in _parts(part, EXTERNAL_DATA))
            data |= {_text(p.get(2, 0)): None for p in pairs if _text(p.get(1, 0)) == "location"}
    return GraphHeader(
        inputs=tuple(tensor for tensor in inputs if tensor.name not in weights),
        outputs=tuple(outputs),
        data=tuple(data),
    )


def _tensor(view: memoryview) -> GraphTensor:
    """Return a ValueInfoProto."""
    name = "".join(map(_text, _parts(view, 1)))
    kind, shape = 0, list[int]()
    for tensor in (tensor for type_ in _parts(view, 2) for tensor in _parts(type_, 1)):
        for number, content in _fields(tensor):
            if number == 1 and isinstance(content, int):
                kind = content
            elif number == 2 and isinstance(content, memoryview):
                for dimension in _parts(content, 1):
                    size = dict(_fields(dimension)).get(1, 0)
                    shape.append(size if isinstance(size, int) else 0)
    return GraphTensor(name=name, type=kind, shape=tuple(shape))


def _text(content: int | memoryview) -> str:
    return bytes(content).decode() if isinstance(content, memoryview) else ""


def _parts(view: memoryview, wanted: int) -> Iterator[memoryview]:
    """Yield the messages and texts in the field of this number."""
    for number, content in _fields(view):
        if number == wanted and isinstance(content, memoryview):
            yield content


def _fields(view: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield the number and the value of each field of a message. Raises IndexError, ValueError."""
    at = 0
    while at < len(view):
        tag, at = _varint(view, at)
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            value, at = _varint(view, at)
            yield number, value
            continue
        if kind == LENGTH:
            size, at = _varint(view, at)
        elif kind in SKIPPED:
            size = SKIPPED[kind]
        else:
            raise ValueError("it is no ONNX graph")
        if at + size > len(view):
            raise ValueError("its end is missing")
        yield number, view[at : at + size]
        at += size


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    """Return a number, and where the next field begins."""
    value = shift = 0
    while True:
        byte = view[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
