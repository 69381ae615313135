"""The memory that writing a quantized model takes, whatever the model's size.

A model of LLaVA's form with random weights is written, and exported by the stage of the real
program, in a process of its own. Memory is what is held above the imports.

    python -m benchmarks.export_memory [--layers 8] [--to nf4] [--shard-mb 256]
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks._common import taken
from flows.machine.launch import DirectLauncher, StageCall, run_with_restarts
from stages.export import BITSANDBYTES, PACKED, ExportJob
from stages.models.hub.checkpoint import INDEX
from stages.models.shards.layout import TensorSpec, index_of, lay_out, write_shard

MB = 1_000_000
HIDDEN, WIDE, WORDS, HEADS = 5120, 13_824, 32_064, 40
BESIDE = 300 * MB
PIECE = 1 << 22


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--layers", type=int, default=6, help="0.3 billion numbers each")
    options.add_argument("--to", default="nf4", choices=(*BITSANDBYTES, *PACKED))
    options.add_argument("--shard-mb", type=int, default=256)
    options.add_argument("--folder", type=Path, help="where all lies meanwhile")
    given = options.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=given.folder) as made:
        folder = Path(made)
        specs = build(folder / "model", given.layers)
        show(folder, specs, given)


def show(folder: Path, specs: Sequence[TensorSpec], given: argparse.Namespace) -> None:
    """Export it and print what that took."""
    shard = given.shard_mb * MB
    job = ExportJob(
        model=str(folder / "model"),
        recipe={"kind": given.to},
        folder=str(folder / "made"),
        kind=given.to,
        parts=("language",),
        group=64,
        shard_bytes=shard,
    )
    call = StageCall(name="export", job=job, device="cpu", log=folder / "log")
    began = time.monotonic()
    outcome = run_with_restarts(DirectLauncher(lambda *_: None), call)
    seconds = time.monotonic() - began
    largest = max(spec.size for spec in specs)
    bound, peak = largest + shard + BESIDE, taken(outcome, "cpu")
    written = sum(path.stat().st_size for path in (folder / "made").glob("*.safetensors"))
    numbers = sum(torch.Size(spec.shape).numel() for spec in specs)
    print(f"{numbers:,} numbers in {sum(spec.size for spec in specs) / MB:,.0f} MB")
    print(
        f"{given.to}: {written / MB:,.0f} MB in {seconds:,.0f} s, {outcome.notes['modules']} layers"
    )
    print(
        f"peak {peak / MB:,.0f} MB above the imports; the largest tensor {largest / MB:,.0f} MB + "
        f"a file {shard / MB:,.0f} MB + 300 MB = {bound / MB:,.0f} MB: {peak / bound:.2f} of it"
    )


def build(folder: Path, layers: int) -> list[TensorSpec]:
    """Write the model, and return its tensors."""
    from stages.models.halves.routes import config_and_class, skeleton_of

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config(layers)))
    skeleton = skeleton_of(*config_and_class(folder, False))
    specs = [
        TensorSpec(name, torch.bfloat16, tuple(tensor.shape))
        for name, tensor in skeleton.state_dict().items()
    ]
    shards = lay_out(specs, 1 << 30)
    for shard in shards:
        write_shard(folder, shard, drawn)
    (folder / INDEX).write_text(json.dumps(index_of(shards)))
    return specs


def config(layers: int) -> dict[str, Any]:
    text = {
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": WIDE,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "vocab_size": WORDS,
    }
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 56,
        "patch_size": 14,
    }
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "dtype": "bfloat16",
        "text_config": text,
        "vision_config": vision,
        "image_token_index": WORDS - 1,
        "tie_word_embeddings": False,
    }


def drawn(spec: TensorSpec) -> Iterator[torch.Tensor]:
    """Yield a tensor's numbers, by chance."""
    left = torch.Size(spec.shape).numel()
    while left:
        piece = torch.randn(min(PIECE, left)).mul_(0.02).to(spec.dtype)
        left -= len(piece)
        yield piece


if __name__ == "__main__":
    main()
