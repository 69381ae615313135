"""Computes a tiny model in llama.cpp and compares its logits with known ones.

A library may have the interface that is known and still compute otherwise: another version, or a
build for a processor that it does not suit. The test takes some hundredths of a second.
"""

import tempfile
from functools import cache
from pathlib import Path

import gguf
import numpy as np

from artifacts.errors import EnvironmentFault
from stages.models.gguf import INSTALL, ROWS
from stages.models.gguf.context import READER, Floats, GgufContext

WIDTH, HEADS, INNER, WORDS, TOKENS = 32, 2, 64, 8, 5
EXPECTED = (
    *(-2.9691925, 1.8555755, 1.5702135, -3.176896),
    *(0.4625926, 2.4359853, -1.401923, -1.8176219),
)
"""The logits after TOKENS tokens, as transformers computes them."""
TOLERANCE = 1e-4
"""Largest difference of a logit, in standard deviations. Builds for other processors round
otherwise, by some 1e-6."""


@cache
def check() -> None:
    """Raise EnvironmentFault if llama.cpp computes other logits than expected. Later calls do
    nothing."""
    with tempfile.TemporaryDirectory(prefix="penstock-gguf-") as folder:
        path = Path(folder, "tiny.gguf")
        write_tiny(path)
        context = GgufContext(path, threads=1)
        try:
            found = _logits(context)
        finally:
            context.close()
    expected = np.array(EXPECTED, np.float32)
    worst = {way: np.abs(row - expected).max() / expected.std() for way, row in found.items()}
    if wrong := [way for way, error in worst.items() if not error <= TOLERANCE]:
        raise EnvironmentFault(
            f"engine gguf: this llama.cpp computes wrong logits ({wrong[0]})",
            hint=f"Remove llama-cpp-python and compile it on this machine: {INSTALL}",
        )


def _logits(context: GgufContext) -> dict[str, Floats]:
    """Return the logits after the last token, by the way in which it was read."""
    rows = numbers(TOKENS, WIDTH)[::-1] * 2
    places = np.arange(TOKENS, dtype=np.int32)[None]
    found = {"a prompt": context.read(rows, places)}
    context.read(rows[:2], places[:, :2])
    found["a prompt in two pieces"] = context.read(rows[2:], places[:, 2:], after=2)
    context.read(rows[:-1], places[:, :-1])
    state = context.state(READER)
    step, at = np.tile(rows[-1], (ROWS, 1)), np.full((1, ROWS), TOKENS - 1, np.int32)
    for way in ("a step", "a step in a used slot"):
        context.restore(1, state, TOKENS - 1)
        found[way] = context.step(step, at, [1])[1]
    return found


def numbers(*shape: int) -> Floats:
    """Return numbers that look random, and are the same everywhere."""
    places = np.arange(np.prod(shape), dtype=np.int64).reshape(shape)
    return ((places * 7919 + 104729 * len(shape)) % 1009 / 1009 - 0.5).astype(np.float32)


def write_tiny(path: Path) -> None:
    """Write a model of one layer."""
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(WORDS)
    head = WIDTH // HEADS
    shapes = {"blk.0.ffn_down": (WIDTH, INNER)}
    shapes |= dict.fromkeys(("token_embd", "output"), (WORDS, WIDTH))
    shapes |= dict.fromkeys(("blk.0.attn_q", "blk.0.attn_output"), (WIDTH, WIDTH))
    shapes |= dict.fromkeys(("blk.0.attn_k", "blk.0.attn_v"), (head, WIDTH))
    shapes |= dict.fromkeys(("blk.0.ffn_gate", "blk.0.ffn_up"), (INNER, WIDTH))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", numbers(WIDTH) + 1)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", numbers(*shape))
    for name, size in (("q", WIDTH), ("k", head), ("v", head)):
        writer.add_tensor(f"blk.0.attn_{name}.bias", numbers(size))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
