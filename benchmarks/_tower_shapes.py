"""Checkpoints whose vision half is timed, and the batches it is given.

CLIP has the published sizes and random weights, the demo's towers are the trained ones. Pictures
and clips are of the demo's world.
"""

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from penstock_demo import CHECKPOINT, DUAL_CHECKPOINT

FRAMES, SIDE = 8, 64
"""Of a clip: frames, and pixels of a frame's edge."""
SEED = 11


class ClipSize(NamedTuple):
    """What a CLIP is made of: a width is that of its tower for pictures, or for texts."""

    layers: int
    width: int
    heads: int
    side: int
    """Pixels of a picture's edge."""
    patch: int
    text_width: int
    projection: int
    """Width of a vector."""
    text_layers: int = 12


CLIPS = {
    "b32": ClipSize(12, 768, 12, side=224, patch=32, text_width=512, projection=512),
    "l14": ClipSize(24, 1024, 16, side=224, patch=14, text_width=768, projection=768),
}
QUICK = ClipSize(2, 64, 4, side=32, patch=8, text_width=32, projection=24, text_layers=1)
DEMOS = {"demo": CHECKPOINT, "demo-clip": DUAL_CHECKPOINT}
NAMES = {
    "b32": "CLIP ViT-B/32",
    "l14": "CLIP ViT-L/14",
    "demo": "demo",
    "demo-clip": "demo's CLIP",
}
"""Shape → name for people."""


def checkpoint(folder: Path, shape: str, quick: bool) -> Path:
    """Return a checkpoint of a shape, which is written where it is not there yet."""
    if shape in DEMOS:
        return DEMOS[shape]
    size, words = (QUICK, {}) if quick else (CLIPS[shape], {"vocab_size": 49408})
    return write_clip(folder / "model", size, **words)


def write_clip(folder: Path, size: ClipSize, **words: int) -> Path:
    """Write a CLIP of that size; `words` changes its text half further."""
    from tests.support.dual_encoders import save_clip

    texts = {
        "hidden_size": size.text_width,
        "intermediate_size": 4 * size.text_width,
        "num_hidden_layers": size.text_layers,
        "num_attention_heads": max(1, size.text_width // 64),
        "max_position_embeddings": 77,
        **words,
    }
    return save_clip(
        folder,
        None,
        texts,
        hidden_size=size.width,
        intermediate_size=4 * size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        image_size=size.side,
        patch_size=size.patch,
        projection_dim=size.projection,
    )


def inputs_of(processor: Any, *, dual: bool, batch: int, count: int) -> list[dict[str, Any]]:
    """Return so many batches of pictures, or clips, as the processor makes them; no two alike, and
    the same in every process."""
    from stages.models.processors.images import prepare_images
    from stages.models.processors.prepare import joined, prepare

    shown = list(_pictures(batch * count) if dual else _clips(batch * count))
    rows = [prepare_images(processor, one) if dual else prepare(processor, one) for one in shown]
    batches = [rows[at : at + batch] for at in range(0, len(rows), batch)]
    return [
        {n: joined([row.inputs[n] for row in rows]) for n in rows[0].inputs} for rows in batches
    ]


def _pictures(count: int) -> Iterator[Any]:
    """Pictures of one to three things, of many sizes."""
    import numpy as np
    from PIL import Image

    from penstock_demo.dual.pictures import write_images
    from stages.models.processors.clip import Clip

    with tempfile.TemporaryDirectory() as folder:
        for truth in write_images(Path(folder), "several", count, SEED):
            pixels = np.asarray(Image.open(Path(folder, truth.file)))
            yield Clip(frames=pixels[None], times=(0.0,), seconds=0.0, kind="image")


def _clips(count: int) -> Iterator[Any]:
    """Clips of two frames a second."""
    from penstock_demo.render import render_frames
    from penstock_demo.world import sample_clip
    from stages.models.processors.clip import Clip

    draw, at = random.Random(SEED), [number / FRAMES for number in range(FRAMES)]
    times = tuple(number / 2 for number in range(FRAMES))
    for _ in range(count):
        pixels = render_frames(sample_clip(draw, "trained"), at, SIDE, SIDE)
        yield Clip(frames=pixels, times=times, seconds=FRAMES / 2, kind="video")
