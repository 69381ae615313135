"""What labelling takes of memory with a CLIP of ViT-L/14's shape, against the whole in 32 bit.

The first row is transformers' own model, both towers in 32 bit, over one batch of pictures and
texts; the others are the embed stage of the real command line over 4K pictures, each within a
budget that is enforced. Weights are random. Memory is what is held above the imports.

    python -m benchmarks.label_memory [--pictures 8] [--batch-size 8] [--folder DIR] [--quick]
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks._common import MIB, Peak, cells, heads, in_fresh_process
from benchmarks._tower_shapes import CLIPS, write_clip
from benchmarks.embed import Row, alike, run

FOUR_K = (3840, 2160)
RUNS = {
    "16 bit, 8 GiB": ("--memory", "8GiB", "--precision", "bf16"),
    "16 bit, 2 GiB": ("--memory", "2GiB", "--precision", "bf16"),
    "int8": ("--memory", "2GiB", "--precision", "int8"),
}
"""Name of a row → options of `penstock embed`. In 16 bit a CPU computes in bf16."""
FIFTH = 5


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--pictures", type=int, default=8)
    options.add_argument("--batch-size", type=int, default=8)
    options.add_argument("--folder", type=Path, help="where all lies meanwhile; 2 GB of weights")
    options.add_argument("--quick", action="store_true", help="a tiny tower: does it run at all?")
    given = options.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=given.folder) as made:
        folder = Path(made)
        build(folder / "model", 1 if given.quick else 24)
        write_images(folder / "pictures", given.pictures)
        joint = in_fresh_process(peak_of_whole, folder, given.batch_size)
        fifth = ("--memory", f"{joint // FIFTH // MIB}MiB", "--precision", "int8")
        runs = {**RUNS, "int8, in a fifth of the whole": fifth}
        rows = [run(folder, name, more, given.batch_size) for name, more in runs.items()]
    show(joint, rows, given.batch_size)


def build(folder: Path, layers: int) -> None:
    """Write a CLIP of ViT-L/14's dimensions, in 32 bit."""
    shape = CLIPS["l14"]._replace(layers=layers, text_layers=max(1, layers // 2), projection=24)
    write_clip(folder, shape, vocab_size=49408)


def peak_of_whole(folder: Path, count: int) -> int:
    """Bytes of transformers' own model and of what it makes of so many pictures."""
    import torch
    from PIL import Image
    from transformers import AutoModel, AutoProcessor
    from transformers.models.clip import modeling_clip  # noqa: F401

    peak = Peak()
    model = AutoModel.from_pretrained(folder / "model", dtype=torch.float32).eval()
    for weight in model.parameters():  # they are mapped, and on a card they would be held
        weight.data = weight.data.clone()
    processor = AutoProcessor.from_pretrained(folder / "model")
    pictures = [Image.open(path) for path in sorted((folder / "pictures").iterdir())[:count]]
    with torch.inference_mode():
        inputs = processor(images=pictures, text=["a", "b", "c"], return_tensors="pt", padding=True)
        model(**inputs)
    return peak.bytes()


def write_images(folder: Path, count: int) -> None:
    """Write 4K pictures of soft colours."""
    import numpy as np
    from PIL import Image

    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(count):
        small = Image.fromarray(draw.integers(0, 255, (27, 48, 3), dtype=np.uint8))
        large = small.resize(FOUR_K, Image.Resampling.BICUBIC)
        large.save(folder / f"{number:03}.jpg", quality=92)


def show(joint: int, rows: Sequence[Row], batch: int) -> None:
    """Print the table."""
    names = "run | budget | rung | planned MiB | measured MiB | of the whole in 32 bit | vectors"
    print(heads(names))
    print(f"| whole, 32 bit | | batch {batch} | | {joint / MIB:,.0f} | 1.00 | |")
    for row in rows:
        told = (f"{row.measured / joint:.2f}", alike(row.vectors, rows[0].vectors))
        print(cells([row.name, row.budget, row.rung, *row.sizes, *told]))


if __name__ == "__main__":
    main()
