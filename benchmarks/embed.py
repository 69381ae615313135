"""Whether `penstock embed` keeps to its plan with a tower as wide as EVA-CLIP-8B's and fewer
layers, and what streaming and few bits cost there; prints a table.

Each row is one run of the real command line over the same pictures and random weights: held whole,
streamed under a budget that the whole exceeds, and quantized. Memory is that of the embed stage
above its imports. Vectors are held against those of the first row: bit-identical, or the least
cosine once what all vectors have in common is taken away.

    python -m benchmarks.embed [--layers 8] [--pictures 8] [--budget 3GiB] [--folder DIR] [--quick]
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks._common import MIB, cells, heads, run_penstock
from flows.results.status import stages_of

EDGE, BATCH = 480, 4


class Size(NamedTuple):
    """What a tower is made of."""

    width: int
    inside: int
    """Width of an MLP."""
    heads: int
    side: int
    """Pixels of a side of a picture."""


EVA_CLIP_8B = Size(width=4096, inside=20480, heads=32, side=224)
TINY = Size(width=128, inside=640, heads=2, side=28)


class Row(NamedTuple):
    """One run."""

    name: str
    budget: str
    rung: str
    planned: int
    measured: int
    """Bytes."""
    seconds: float
    vectors: Any

    @property
    def error(self) -> float:
        return self.planned / self.measured - 1

    @property
    def sizes(self) -> tuple[str, str]:
        """MiB that were planned and measured."""
        return f"{self.planned / MIB:,.0f}", f"{self.measured / MIB:,.0f}"


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--layers", type=int, default=8)
    options.add_argument("--pictures", type=int, default=8)
    options.add_argument("--budget", default="3GiB")
    options.add_argument("--folder", type=Path, help="where all lies meanwhile; 4 GB of weights")
    options.add_argument("--quick", action="store_true", help="a tiny tower: does it run at all?")
    given = options.parse_args(arguments)
    runs = {
        "held": (),
        "streamed": ("--memory", given.budget),
        "nf4": ("--precision", "nf4"),
        "int8": ("--precision", "int8"),
    }
    with tempfile.TemporaryDirectory(dir=given.folder) as made:
        folder = Path(made)
        build(folder / "model", TINY if given.quick else EVA_CLIP_8B, given.layers)
        write_images(folder / "pictures", given.pictures)
        rows = [run(folder, name, more) for name, more in runs.items()]
    print("\n".join(table(rows)))


def build(folder: Path, size: Size, layers: int) -> None:
    """Write a checkpoint of that size in 16 bit, a file a layer, with a tiny text tower."""
    import torch
    from safetensors.torch import save_file

    from tests.support.evaclip import Layout, converted, original, save_tokenizer

    # The ends and the text tower are a tiny model's, but for what the width decides.
    config, tiny = converted(original(Layout(side=size.side)))
    draw = torch.Generator().manual_seed(0)
    folder.mkdir(parents=True)
    places: dict[str, str] = {}

    def wide(name: str, tensor: torch.Tensor) -> torch.Tensor:
        small = config["vision_config"]
        sizes = {small["hidden_size"]: size.width, small["intermediate_size"]: size.inside}
        shape = [sizes.get(length, length) for length in tensor.shape]
        if name.endswith("norm.weight") or "layer_norm" in name:
            return torch.ones(shape, dtype=torch.bfloat16)
        made = torch.randn(shape, generator=draw) * float(shape[-1] ** -0.5)
        return made.bfloat16()

    def write(file: str, tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, folder / file, metadata={"format": "pt"})
        places.update(dict.fromkeys(tensors, file))

    first = "vision_model.encoder.layers.0."
    kinds = {n.removeprefix(first): t for n, t in tiny.items() if n.startswith(first)}
    ends = {n: t for n, t in tiny.items() if not n.startswith("vision_model.encoder")}
    seen = ("vision_model", "visual")
    write(
        "model-ends.safetensors",
        {n: wide(n, t) if n.startswith(seen) else t.bfloat16() for n, t in ends.items()},
    )
    for index in range(layers):
        path = first.replace("0", str(index))
        tensors = {f"{path}{name}": wide(f"{path}{name}", t) for name, t in kinds.items()}
        write(f"model-{index:02}.safetensors", tensors)
    config["vision_config"] |= {
        "hidden_size": size.width,
        "intermediate_size": size.inside,
        "num_attention_heads": size.heads,
        "num_hidden_layers": layers,
    }
    (folder / "config.json").write_text(json.dumps({**config, "torch_dtype": "bfloat16"}))
    index_of = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index_of))
    save_tokenizer(folder)


def write_images(folder: Path, count: int) -> None:
    """Write pictures of large random squares."""
    from PIL import Image

    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(count):
        squares = draw.integers(0, 255, (6, 8, 3), dtype=np.uint8)
        pixels = np.kron(squares, np.ones((EDGE // 8, EDGE // 8, 1), np.uint8))
        Image.fromarray(pixels).save(folder / f"{number:03}.png")


def run(folder: Path, name: str, more: Sequence[str], batch: int = BATCH) -> Row:
    """Run one way, in a store of its own. Raises RuntimeError with its errors where it fails."""
    out, store = folder / f"out-{name}", folder / f"store-{name}"
    options = ("--batch-size", str(batch), *more)
    record = run_penstock("embed", folder / "pictures", folder / "model", out, store, *options)
    (plan,) = (s for s in record["plan"]["memory"]["stages"] if s["stage"] == "embed")
    (stage,) = (s for s in stages_of(record, time.time()) if s.name == "embed")
    return Row(
        name=name,
        budget=more[1] if "--memory" in more else "",
        rung=plan["name"],
        planned=stage.planned_bytes,
        measured=stage.taken_bytes,
        seconds=stage.seconds,
        vectors=np.load(out / "embeddings.npy"),
    )


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Markdown."""
    names = "tower | budget | rung | planned MiB | measured MiB | plan | s | vectors"
    yield from heads(names).splitlines()
    for row in rows:
        took = (f"{row.error:+.1%}", f"{row.seconds:.0f}", alike(row.vectors, rows[0].vectors))
        yield cells([row.name, row.budget, row.rung, *row.sizes, *took])


def alike(found: Any, wanted: Any) -> str:
    """Say how near the vectors of two runs are."""
    if np.array_equal(found, wanted):
        return "equal"
    one, other = (each - each.mean(axis=0) for each in (found, wanted))
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return f"cosine {((one * other).sum(axis=1) / norms).min():.4f}"


if __name__ == "__main__":
    main()
