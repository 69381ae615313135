"""Every check, in the order in which they are made, with the seconds that it may take and what it
needs of a card."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from scripts.gpu_check import card, driver, graphs, halves, kernels, serve, slots, whole
from scripts.gpu_check.rows import Row
from scripts.gpu_check.setting import DEMO, Setting

Rows = Callable[[Setting], Iterator[Row]]


class Check(NamedTuple):
    """One of them."""

    name: str
    rows: Rows
    seconds: float = 120.0
    """After so many it is given up."""
    needs: tuple[str, ...] = ()
    """Of `card.LACKS`."""


LOOK = Check("card", card.look)
# First what is known least, in case time runs out.
CHECKS = (
    Check("kernels of products", kernels.products),
    Check("kernels of attention", kernels.attention),
    Check("kernels, new lengths", kernels.lengths),
    Check("slots, trial", slots.trial, 400),
    Check("slots, steps", slots.steps, 400),
    Check("slots, bits", slots.bits, 400),
    Check("bits", whole.bits, 400),
    Check("context", driver.context),
    Check("outside the allocator", driver.outside, needs=("device", "allocator")),
    Check("uuid", driver.uuid),
    Check("SDPA", driver.sdpa, needs=("device", "allocator")),
    Check("fork, unasked", driver.fork_unasked),
    Check("fork, asked by NVML", driver.fork_by_nvml),
    Check("fork, asked by CUDA", driver.fork_by_cuda),
    Check("features in fp32", halves.fp32),
    Check("graphs by onnx", graphs.by_cuda, 300, needs=("device",)),
    Check("graphs by tensorrt", graphs.by_tensorrt, 900, needs=("device",)),
    Check("streamed encoder", halves.streamed),
    Check("layer by layer", halves.layer_by_layer),
    Check("KV cache offloaded", halves.kv_offloaded, needs=("streams",)),
    Check("KV cache quantized", halves.kv_quantized),
    Check("int8", halves.int8),
    Check("nf4", halves.nf4),
    Check("baselines", whole.baselines, 400),
    Check("lock", whole.lock, 400),
    *(Check(f"budget {size}", whole.within(size), 300) for size in whole.BUDGETS),
    Check("GPU against CPU", whole.against_cpu, 400),
    Check("slots, engines", slots.engines, 400),
    Check("serve", serve.beside_commands, 400),
    Check("serve in turns", serve.in_turns, 300),
    Check("serve under load", serve.under_load, 200),
    Check("doctor --measure", whole.measured, 90),
)
OF_A_MODEL = (
    Check("plan", whole.planned, 1200, needs=("device", "allocator")),
    Check("streaming", halves.rate, 600, needs=("device",)),
    Check("model in nf4", whole.in_nf4, 1200),
)
"""Made of another model than the demo's only."""


def wanted(setting: Setting, only: tuple[str, ...]) -> tuple[Check, ...]:
    """The checks whose names hold one of these words; all, of no words."""
    checks = CHECKS + (OF_A_MODEL if setting.model != DEMO else ())
    return tuple(
        check
        for check in checks
        if not only or any(word.lower() in check.name.lower() for word in only)
    )


def named(name: str) -> Check:
    """Raises StopIteration for a name that there is not."""
    return next(check for check in (LOOK, *CHECKS, *OF_A_MODEL) if check.name == name)
