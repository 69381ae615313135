"""Folders with the published configuration and shapes of models whose weights are nowhere here:
headers without data, in files as long as the published ones that take no disk."""

import atexit
import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CASES = Path(__file__).parent / "plan_cases"
SHARD = 5_000_000_000
"""Bytes a file holds at the most, as `save_pretrained` cut in those days."""
INDEX = "model.safetensors.index.json"
BYTES = {
    "F32": 4,
    "I32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I8": 1,
    "U8": 1,
    "F8_E4M3": 1,
    "F8_E8M0": 1,
}
"""Type in words of safetensors → bytes of a number."""
TYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "int64": "I64"}
"""Type by torch → by safetensors."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A tensor of a file whose data is not there."""

    dtype: str
    """Its type, in words of safetensors."""
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * BYTES[self.dtype]


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanCase:
    """A model by its dimensions."""

    name: str
    """Its id on the hub."""
    source: str
    """Where the dimensions are published."""
    parameters: int
    dtype: str
    """Of its files, in words of safetensors."""
    processor: str | None
    """Which small processor says what the published one says; None where no class captions with
    it."""
    config: dict[str, Any]
    tensors: dict[str, tuple[int, ...]]
    """Name → shape, in the order of the files."""

    @property
    def shapes(self) -> dict[str, Shape]:
        """Return its tensors as its files state them."""
        return {name: Shape(dtype=self.dtype, shape=shape) for name, shape in self.tensors.items()}


def plan_case(name: str) -> PlanCase:
    """The case in `plan_cases/NAME.json`. A line of its tensors is a name, a shape and how often it
    is there, with its number in place of `{}`."""
    values = json.loads((CASES / f"{name}.json").read_text(encoding="utf-8"))
    lines = values.pop("tensors")
    # A layer's tensors stand together, as a model saves them.
    repeated = sorted(
        (
            (at if count == 1 else _first(lines, pattern), index, at, pattern.format(index), shape)
            for at, (pattern, shape, count) in enumerate(lines)
            for index in range(count)
        ),
        key=lambda entry: entry[:3],
    )
    tensors = {name: tuple(shape) for *_, name, shape in repeated}
    return PlanCase(tensors=tensors, **values)


def _first(lines: list[Any], pattern: str) -> int:
    prefix = pattern.split("{}")[0]
    return next(at for at, line in enumerate(lines) if line[0].startswith(prefix + "{}"))


def kept_folder(case: PlanCase) -> Path:
    """What `make_folder` makes, until the tests end."""
    folder = Path(tempfile.mkdtemp(prefix="penstock-plan-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return make_folder(case, folder)


def make_folder(case: PlanCase, folder: Path) -> Path:
    """Config, index and headers; a processor too where transformers can describe the model."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(case.config, indent=1))
    if case.processor is not None:
        from tests.support.builders.processors import PROCESSORS

        PROCESSORS[case.processor]().save_pretrained(folder)
    write_sparse(folder, case.shapes)
    return folder


def write_sparse(folder: Path, tensors: Mapping[str, Shape]) -> int:
    """Write files with true headers and no data, and the index of several; return the sum of the
    shapes in bytes."""
    shards = [*_shards(tensors)]
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        name = "model.safetensors" if len(shards) == 1 else name
        write_header(folder / name, shard)
        places |= dict.fromkeys(shard, name)
    total = sum(shape.bytes for shape in tensors.values())
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")
    return total


def _shards(tensors: Mapping[str, Shape]) -> Iterator[dict[str, Shape]]:
    held: dict[str, Shape] = {}
    size = 0
    for name, shape in tensors.items():
        if held and size + shape.bytes > SHARD:
            yield held
            held, size = {}, 0
        held[name] = shape
        size += shape.bytes
    yield held


def write_header(path: Path, tensors: Mapping[str, Shape]) -> None:
    """Write a safetensors file of full length whose data is a hole."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in tensors.items():
        end = at + shape.bytes
        entries[name] = {"dtype": shape.dtype, "shape": shape.shape, "data_offsets": [at, end]}
        at = end
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + at)
