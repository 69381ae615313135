"""How fast this machine computes what halves of models are made of; runs in a process of its own
and knows no model."""

import copy
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TOKENS = (1, 8, 512)
"""Rows that go through a layer at once: a step of one chunk, of a batch, and the reading of a
prompt or the encoding of pictures."""
WIDTH = {"cpu": 2048, "cuda": 4096}
"""Of the layers: as wide as those of common models, so that a GPU has something to do."""
PASS_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}
"""Weights that one pass reads: more than caches hold, as those of models are."""
MOST_LAYERS = 32
PIECE_SECONDS = 0.15
"""How long one figure is measured at the most, unless a single run takes longer."""
REPEATS = 15
SMALL = 64
"""Width of layers whose computing is nothing beside their being called."""


def seconds_of(run: Callable[[], object], device: str, most: float = PIECE_SECONDS) -> float:
    """The median of a few repeats; of what takes long, the first."""
    times = [_timed(run, device)]  # it finds its kernels
    if times[0] > 2 * most:
        return times[0]
    times, end = [], time.perf_counter() + most
    while len(times) < REPEATS and (len(times) < 2 or time.perf_counter() < end):
        times.append(_timed(run, device))
    return sorted(times)[len(times) // 2]


def _timed(run: Callable[[], object], device: str) -> float:
    started = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def passes(precision: str, device: str) -> list[list[float]]:
    """[tokens, seconds a parameter] of linear layers, for each of TOKENS."""
    width = WIDTH[device.partition(":")[0]]
    dtype = DTYPES.get(precision) or _companion(device)
    layers = _layers(precision, device, width)
    found = []
    for tokens in TOKENS:
        x = torch.randn(tokens, width, device=device).to(dtype)
        # Of a long pass the weights are read once and used often: a few layers tell as much.
        used = layers if tokens < TOKENS[-1] else layers[:2]
        seconds = seconds_of(functools.partial(_through, used, x), device)
        found.append([tokens, seconds / (len(used) * width * width)])
    return found


def _through(layers: Sequence[Any], x: torch.Tensor) -> None:
    for layer in layers:
        layer(x)


def quantizing(precision: str, device: str) -> float:
    """Parameters a second that become 8 or 4 bit while a model is loaded."""
    width = WIDTH[device.partition(":")[0]]
    _layer(precision, SMALL, torch.randn(SMALL, SMALL)).to(device)  # it loads its library
    weight = torch.randn(width, width)
    layer = _layer(precision, width, weight)
    return width * width / _timed(lambda: layer.to(device), device)


def _companion(device: str) -> torch.dtype:
    """What quantized layers compute in."""
    return torch.float32 if device == "cpu" else torch.float16


def _layers(precision: str, device: str, width: int) -> list[Any]:
    kind = device.partition(":")[0]
    wide = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "int8": 1.0, "nf4": 0.5}[precision]
    count = min(MOST_LAYERS, round(PASS_BYTES[kind] / (width * width * wide)))
    weight = torch.randn(width, width) / width**0.5
    first = _layer(precision, width, weight).to(device).eval()
    # Copies of the first: to quantize each of them would take longer than all the rest.
    return [first, *(_copy(first) for _ in range(count - 1))]


def _layer(precision: str, width: int, weight: torch.Tensor) -> Any:
    if precision in DTYPES:
        layer: Any = nn.Linear(width, width, bias=False, dtype=DTYPES[precision])
        layer.weight.data = weight.to(DTYPES[precision])
        return layer
    from bitsandbytes.nn import modules as bnb

    made: Any = bnb
    if precision == "int8":
        layer = made.Linear8bitLt(width, width, bias=False, has_fp16_weights=False, threshold=6.0)
        layer.weight = made.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        return layer
    layer = made.Linear4bit(width, width, bias=False, quant_type="nf4")
    layer.weight = made.Params4bit(weight, requires_grad=False, quant_type="nf4")
    return layer


def _copy(layer: Any) -> Any:
    made = copy.copy(layer)
    made._parameters = dict(layer._parameters)
    weight = copy.copy(layer.weight)
    weight.data = layer.weight.data.clone()
    made._parameters["weight"] = weight
    return made


class SmallBlock(nn.Module):
    """A decoder's block in small, with a cache: what is called around each linear layer."""

    LINEARS = 7

    def __init__(self) -> None:
        super().__init__()
        self.square = nn.ModuleList(nn.Linear(SMALL, SMALL, bias=False) for _ in range(7))
        self.norm = nn.ModuleList(nn.RMSNorm(SMALL) for _ in range(2))

    def forward(self, x: torch.Tensor, past: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
        rows, tokens, _ = x.shape
        hidden = self.norm[0](x)
        q, k, v = (f(hidden).view(rows, tokens, 4, -1).transpose(1, 2) for f in self.square[:3])
        q, k = (t * turn + torch.cat((-t[..., 8:], t[..., :8]), -1) * turn for t in (q, k))
        k, v = torch.cat((past, k), 2), torch.cat((past, v), 2)
        seen = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.square[3](seen.transpose(1, 2).reshape(rows, tokens, SMALL))
        hidden = self.norm[1](x)
        gate = nn.functional.silu(self.square[4](hidden)) * self.square[5](hidden)
        return torch.add(x, self.square[6](gate))


def call_seconds(device: str) -> float:
    """What a linear layer and what stands around it take when there is nothing to compute."""
    block = SmallBlock().to(device).eval()
    x = torch.randn(1, 1, SMALL, device=device)
    past = torch.randn(1, 4, 64, SMALL // 4, device=device)
    turn = torch.randn(1, 1, SMALL // 4, device=device)

    def run() -> None:
        for _ in range(8):
            block(x, past, turn)

    return seconds_of(run, device) / (8 * SmallBlock.LINEARS)


def preparing() -> float:
    """Numbers of pixel input a second that become of frames: resized, and scaled."""
    frames = torch.randint(0, 255, (2, 3, 720, 1280), dtype=torch.uint8)

    def run() -> torch.Tensor:
        small = nn.functional.interpolate(
            frames.float(), (384, 384), mode="bicubic", antialias=True
        )
        return (small / 255 - 0.5) / 0.5

    return 2 * 3 * 384 * 384 / seconds_of(run, "cpu")
