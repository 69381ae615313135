"""What each way to run a language half in less memory saves and costs, on one long prompt; prints a
table.

A prompt of which half is a video's features goes to a model of random weights, each way in a
process of its own. Memory is anonymous, above the imports, weights included; time is that of the
CPU, so that a busy machine says much the same.

    python benchmarks/actuators.py [--tokens 4096] [--new 4] [--quick]
"""

import argparse
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from benchmarks._common import MIB, Peak, cells, heads, in_fresh_process
from benchmarks._models import TINY, Shape, build

SHAPE = Shape(layers=12, width=1024, tower_layers=1, tower_width=128, vocabulary=150000)
"""A quarter of a billion parameters of language, over half of them in the embedding."""
LOOK_SECONDS = 0.002
ROWS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "logits of every token, as some classes make them": {"logits": "all"},
    "1,024 tokens at a time, by `generate`": {"prefill": 1024},
    "256 tokens at a time, by `generate`": {"prefill": 256},
    "256 tokens at a time, MLPs only": {"prefill": 256, "mlps": True},
    "KV cache in 8 bit": {"kv": "quantized"},
    "int8": {"precision": "int8"},
    "nf4": {"precision": "nf4"},
    "layers from the files": {"offload": True},
    "layers from the files, 256 tokens at a time": {"offload": True, "prefill": 256},
}
"""Way → what the job says."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--tokens", type=int, default=4096)
    options.add_argument("--new", type=int, default=4)
    options.add_argument("--quick", action="store_true", help="a tiny model: does it run at all?")
    given = options.parse_args(arguments)
    print(heads(" | MiB | change | CPU s to read the prompt | CPU s per token"))
    with tempfile.TemporaryDirectory() as folder:
        shape = TINY if given.quick else SHAPE
        model = build(Path(folder, "model"), shape, given.new)
        first = 0
        for row, changes in ROWS.items():
            job = {"model": str(model), "dtype": "bfloat16", **changes}
            spec = {"job": job, "tokens": given.tokens, "new": given.new}
            found = in_fresh_process(measure, spec)
            peak = round(found["peak"] / MIB)
            first = first or peak
            costs = f"{found['reading']:.1f}", f"{found['token']:.2f}"
            print(cells([row, peak, f"{peak - first:+}", *costs]), flush=True)


def measure(spec: dict[str, Any]) -> dict[str, float]:
    """Peak in bytes; CPU seconds of reading the prompt and of one more token."""
    import torch

    from stages.decode.generate_kwargs import make_greedy
    from stages.models.half_job import HalfJob
    from stages.models.halves.inject_features import generate
    from stages.models.loading import ModelJob, warm
    from stages.process.memory_limit import start_threads

    job, new = spec["job"], spec["new"]
    of_half = {field.name for field in fields(HalfJob)} & job.keys()
    half_job = {name: job[name] for name in of_half}
    warm({"half": half_job})
    start_threads()
    peak = Peak(LOOK_SECONDS)
    half = ModelJob(**half_job).load("language")
    make_greedy(half, ModelJob(**half_job).processor())
    inputs, features = long_prompt(half, spec["tokens"])
    said = options_of(half, job)
    marks: list[float] = []
    head = half.get_output_embeddings()
    head.register_forward_hook(lambda *_: marks.append(time.process_time()))
    started = time.process_time()
    with torch.inference_mode():
        generate(half, inputs, features, max_new_tokens=new, min_new_tokens=new, **said)
    # A prompt in pieces goes by the head once a piece; the last `new` times are those of tokens.
    read = marks[-new]
    each = (marks[-1] - read) / max(1, new - 1)
    return {"peak": peak.bytes(), "reading": read - started, "token": each}


def options_of(half: Any, job: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of `generate`, as the decode stage gives them."""
    from stages.decode.prefill_options import KV_OPTIONS
    from stages.models.halves.chunked_mlp import chunk_position_wise

    found = dict(KV_OPTIONS[job.get("kv", "")])
    prefill = job.get("prefill", 0)
    if prefill and (job.get("mlps") or job.get("offload")):
        chunk_position_wise(half, prefill)
    elif prefill:
        found["prefill_chunk_size"] = prefill
    return found | ({"logits_to_keep": 0} if job.get("logits") else {})


def long_prompt(half: Any, tokens: int) -> tuple[dict[str, Any], Any]:
    """A prompt of which about half are placeholders of one video, and features for those."""
    import torch
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    from stages.models.halves.features import Features

    config = half.config
    side = math.isqrt(tokens // 2)
    ids = torch.full((1, tokens), 300)
    ids[:, 9] = config.vision_start_token_id
    ids[:, 10 : 10 + side * side] = config.video_token_id
    made = torch.Generator().manual_seed(0)
    rows = torch.randn(side * side, config.text_config.hidden_size, generator=made)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": 2 * (ids == config.video_token_id).long(),
        "video_grid_thw": torch.tensor([[1, 2 * side, 2 * side]]),
        "second_per_grid_ts": torch.ones(1),
    }
    record = BaseModelOutputWithPooling(pooler_output=[rows.to(half.dtype)])  # type: ignore[arg-type]
    return inputs, Features({"video": record})


if __name__ == "__main__":
    main()
