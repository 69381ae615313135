"""Folders with the published configuration and shapes of models whose weights are nowhere here:
headers without data, in files as long as the published ones that take no disk."""

import atexit
import json
import math
import shutil
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CASES = Path(__file__).parent / "plan_cases"
SHARD = 5_000_000_000
"""Bytes a file holds at the most, as `save_pretrained` cut in those days."""
BYTES = {"F32": 4, "F16": 2, "BF16": 2}


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
        from benchmarks._processors import PROCESSORS

        PROCESSORS[case.processor]().save_pretrained(folder)
    shards = list(_shards(case))
    if len(shards) == 1:
        write_header(folder / "model.safetensors", shards[0], case.dtype)
        return folder
    names = [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    weight_map: dict[str, str] = {}
    for name, shard in zip(names, shards, strict=True):
        write_header(folder / name, shard, case.dtype)
        weight_map |= dict.fromkeys(shard, name)
    total = case.parameters * BYTES[case.dtype]
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def _shards(case: PlanCase) -> Iterator[dict[str, tuple[int, ...]]]:
    held: dict[str, tuple[int, ...]] = {}
    size = 0
    for name, shape in case.tensors.items():
        more = math.prod(shape) * BYTES[case.dtype]
        if held and size + more > SHARD:
            yield held
            held, size = {}, 0
        held[name] = shape
        size += more
    yield held


def write_header(path: Path, tensors: dict[str, tuple[int, ...]], dtype: str) -> None:
    """A safetensors file of full length whose data is a hole."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in tensors.items():
        end = at + math.prod(shape) * BYTES[dtype]
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
        at = end
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + at)
