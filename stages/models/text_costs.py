"""Runs the text half of a dual encoder dry, on the meta device, and tells what computing it takes.
Reads no weights, and knows no family."""

from collections.abc import Iterator
from typing import Any

import torch

from stages.memory.live_bytes import LiveBytes
from stages.memory.meta_device import on_meta_device, without_data
from stages.memory.repeated_layers import RepeatedLayers
from stages.models.footprint import BatchCost
from stages.models.halves.vectors import most_tokens, text_vectors

ROWS = (1, 2, 8)
"""Texts that are tried together."""
ASSUMED_TOKENS = 300
"""Tokens of a text where nothing says how many there may be."""


def text_costs(skeleton: Any, processor: Any, repeated: RepeatedLayers) -> Iterator[BatchCost]:
    """Yield what a text half takes of a few texts and of many. All are of a length, that of the
    longest it reads."""
    length = most_tokens(processor, skeleton) or ASSUMED_TOKENS
    for rows in ROWS:
        inputs = {"input_ids": torch.ones(rows, length, dtype=torch.long)}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        live = LiveBytes([*skeleton.parameters(), *skeleton.buffers()])
        with on_meta_device(live), repeated.layers(skeleton, live):
            made = text_vectors(skeleton, without_data(inputs))
        yield BatchCost(
            kind="image",
            rows=rows,
            units=length,
            peak_bytes=live.peak,
            peak_bytes_32=live.peak_32,
            kept_bytes=made.nbytes,
            flops=live.flops,
        )
