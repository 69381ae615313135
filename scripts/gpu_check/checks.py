"""Every check, in the order in which they are made, with the seconds that it may take and what it
needs of a card."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from scripts.gpu_check import (
    card,
    driver,
    graphs,
    halves,
    kernels,
    model,
    model_runs,
    serve,
    slots,
    whole,
)
from scripts.gpu_check.rows import Row
from scripts.gpu_check.setting import Setting

Rows = Callable[[Setting], Iterator[Row]]


class Check(NamedTuple):
    """One of them."""

    name: str
    rows: Rows
    seconds: float = 120.0
    """After so many it is given up."""
    needs: tuple[str, ...] = ()
    """Of `card.LACKS`."""
    process: str = "device"
    """Consecutive checks share a process if this is equal: `device` computes, `runs` starts
    commands and computes nothing; empty: a process of its own."""


LOOK = Check("card", card.look)
BNB, ONNX, SERVE = (
    ("bitsandbytes",),
    ("onnxruntime-gpu", "onnxscript"),
    ("av", "fastapi", "uvicorn"),
)
# First what is known least, in case time runs out.
CHECKS = (
    Check("kernels of products", kernels.products),
    Check("kernels of attention", kernels.attention),
    Check("kernels, each", kernels.backends),
    Check("kernels, new lengths", kernels.lengths),
    Check("model", model.found, 600),
    Check("model, bf16", model.decoding["bf16"], 600),
    Check("model, loads", model.loads),
    Check("model, streamed", model.streamed, 200, ("device",)),
    Check("model, fp16", model.decoding["fp16"], 300),
    Check("model, nf4", model.decoding["nf4"], 300, BNB),
    Check("forks", driver.forks, 120, (), "runs"),
    Check("slots, trial", slots.trial, 400, (), "runs"),
    Check("slots, bits", slots.bits, 400, (), "runs"),
    Check("bits", whole.bits, 400, (), "runs"),
    Check("model, captions", model_runs.captions, 600, process="runs"),
    Check("context", driver.context, process=""),
    Check("outside the allocator", driver.outside, 120, ("device", "allocator"), ""),
    Check("model, LoRA, fp16", model.fp16_training, 200, ("peft",)),
    Check("uuid", driver.uuid),
    Check("SDPA", driver.sdpa, 120, ("device", "allocator")),
    Check("features in fp32", halves.fp32),
    Check("streamed encoder", halves.streamed),
    Check("layer by layer", halves.layer_by_layer),
    Check("KV cache offloaded", halves.kv_offloaded, 120, ("streams",)),
    Check("KV cache quantized", halves.kv_quantized),
    Check("int8", halves.int8, 120, BNB),
    Check("nf4", halves.nf4, 120, BNB),
    Check("graphs by onnx", graphs.by_cuda, 300, ("device", *ONNX)),
    Check("graphs by tensorrt", graphs.by_tensorrt, 900, ("device", *ONNX)),
    Check("model, LoRA", model_runs.training["native"], 400, ("peft",), "runs"),
    Check("model, LoRA, nf4", model_runs.training["nf4"], 400, (*BNB, "peft"), "runs"),
    Check("baselines", whole.baselines, 400, (), "runs"),
    Check("lock", whole.lock, 400, (), "runs"),
    *(Check(f"budget {size}", whole.within(size), 400, (), "runs") for size in whole.BUDGETS),
    Check("GPU against CPU", whole.against_cpu, 400, (), "runs"),
    Check("serve", serve.beside_commands, 400, SERVE, "runs"),
    Check("serve in turns", serve.in_turns, 300, SERVE, "runs"),
    Check("serve under load", serve.under_load, 200, SERVE, "runs"),
    Check("doctor --measure", whole.measured, 200, ("device", "av"), "runs"),
)


def wanted(only: tuple[str, ...]) -> tuple[Check, ...]:
    """The checks whose names hold one of these words; all, of no words."""
    return tuple(
        check
        for check in CHECKS
        if not only or any(word.lower() in check.name.lower() for word in only)
    )


def named(name: str) -> Check:
    """Raises StopIteration for a name that there is not."""
    return next(check for check in (LOOK, *CHECKS) if check.name == name)
