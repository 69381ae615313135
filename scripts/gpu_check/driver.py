"""Which card and libraries there are and what they can show. A stand-in for a card shows less, and
is found out by trying."""

import os
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flows.checkpoint.precision import native_dtype, no_bfloat16
from flows.planning.terms import GPU_WORKSPACE_BYTES
from scripts.gpu_check.rows import MIB, Row, Setting, mib, row, skipped
from stages.process.device import (
    device_capability,
    device_free_bytes,
    device_holders,
    device_model,
    device_used_bytes,
    device_uuid,
    driver_version,
)
from stages.process.device_limit import context_bytes
from stages.process.memory import cores, host_total_bytes

LIBRARIES = ("av", "bitsandbytes", "fastapi", "onnxruntime-gpu", "onnxscript", "peft", "uvicorn")
"""Distributions without which some checks cannot be made."""
LACKS = {
    "device": "tensors do not lie on the device here",
    "allocator": "torch's allocator does not count what a tensor takes here",
    "streams": "there are no streams of torch's own here",
    **{name: f"{name} is not installed" for name in LIBRARIES},
}
"""What a stand-in for a GPU, or an environment, may not have → why a check that needs it is
skipped."""
TOLD = ("transformers", "bitsandbytes", "onnxruntime-gpu")
"""Distributions whose versions the row prints besides torch's."""
PROBE_BYTES = 64 * MIB


def stand_in() -> bool:
    """Whether the GPU is simulated by the tests. Its results must not be written to the page."""
    return bool(os.environ.get("FAKE_GPU"))


def look(setting: Setting) -> Iterator[Row]:
    """Two rows for a program: the card's name and versions, and what it lacks of LACKS. The first
    is also what shows that torch can compute on it at all."""
    import torch

    # A too old driver, or a card without kernels, fails here and nowhere else.
    square = torch.ones(8, 8, device=setting.device)
    good = float((square @ square).sum()) == 512.0
    figures = {
        "name": device_model(setting.device) or "a GPU without a name",
        "driver": driver_version(setting.device) or "of unknown version",
        "compute capability": ".".join(map(str, device_capability(setting.device))),
        "torch": torch.__version__,
        "cuDNN": str(torch.backends.cudnn.version()),
        **{name: found for name in TOLD if (found := installed_version(name))},
        "CPU cores": str(cores()),
        "RAM": mib(host_total_bytes()),
    }
    name, *others = figures.items()
    words = ", ".join([name[1], *(f"{kind} {value}" for kind, value in others)])
    yield row("card", "8 x 8 ones multiplied give 8", words, good, **figures)
    yield row("lacks", "", ",".join([*lacks(setting.device), *missing()]), True)


def installed_version(name: str) -> str:
    """Return the version of a distribution; empty if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def missing() -> Iterator[str]:
    """Yield those of LIBRARIES that cannot be imported."""
    for name in LIBRARIES:
        try:
            found = find_spec(name.removesuffix("-gpu"))
        except ImportError:
            found = None
        # The wheels of ONNX Runtime for CPUs and for GPUs have the same module.
        provider = "" if name != "onnxruntime-gpu" else "capi/libonnxruntime_providers_cuda.so"
        if found is None or not (Path(str(found.origin)).parent / provider).exists():
            yield name


def lacks(device: str) -> Iterator[str]:
    """Names of LACKS."""
    import torch

    probe = torch.empty(PROBE_BYTES, dtype=torch.uint8, device=device)
    if not probe.is_cuda:
        yield "device"
    del probe
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    probe = torch.empty(PROBE_BYTES, dtype=torch.uint8, device=device)
    rise = torch.cuda.memory_allocated(device) - before
    peak = torch.cuda.max_memory_allocated(device) - before
    if rise != PROBE_BYTES or peak < PROBE_BYTES:
        yield "allocator"
    del probe
    try:
        torch.Stream(device=device).synchronize()
    except Exception:  # whatever it says, there is none
        yield "streams"


CONTEXT_MIB = (250, 800)
"""What a context takes on the cards that people reported; an H200 takes 619."""
SIDE = 2048
LIST_SLACK_BYTES = 32 * MIB
POSITIONS, HEADS, WIDTH = 8192, 16, 64
SDPA_MIB = {"causal": 100, "boolean mask": 600}
"""Most that fused attention may take above its inputs; the unfused one takes 2 GiB a copy."""


def context(setting: Setting) -> Iterator[Row]:
    """What a context takes, twice told."""
    import torch

    device = setting.device
    before = device_used_bytes(device)
    torch.zeros(1, device=device)
    torch.cuda.synchronize()
    taken = device_used_bytes(device) - before - torch.cuda.memory_reserved(device)
    low, high = CONTEXT_MIB
    if not device_free_bytes(device)[1]:
        why = "the driver does not tell what is in use"
        yield skipped("context, by difference", why, f"{low}-{high} MiB")
        return
    good = low * MIB <= taken <= high * MIB
    yield row("context, by difference", f"{low}-{high} MiB", mib(taken), good, bytes=taken)
    yield listed(taken, device_holders(device))


def outside(setting: Setting) -> Iterator[Row]:
    """What there is outside the allocator once the libraries for products and for convolutions are
    loaded, beside what a plan counts: what the test of a card has read, and cuBLAS' workspace."""
    import torch

    device = setting.device
    before = device_used_bytes(device)
    message = native_dtype("bfloat16", device)
    counted = context_bytes(device, message) + GPU_WORKSPACE_BYTES
    dtype = getattr(torch, message)
    square = torch.randn(SIDE, SIDE, device=device, dtype=dtype)
    square @ square
    patches = torch.nn.Conv3d(3, 64, (2, 14, 14), device=device, dtype=dtype)
    patches(torch.randn(1, 3, 2, 224, 224, device=device, dtype=dtype))
    heads = square.view(1, -1, SIDE, WIDTH)
    torch.nn.functional.scaled_dot_product_attention(heads, heads, heads)
    torch.cuda.synchronize()
    taken = device_used_bytes(device) - before - torch.cuda.memory_reserved(device)
    expected = f"at most {mib(counted)}, which a plan counts"
    name = f"outside the allocator after a gemm and a convolution, {message}"
    yield row(name, expected, mib(taken), taken <= counted, bytes=taken)


def quantized(setting: Setting) -> Iterator[Row]:
    """What a stage that quantizes takes for the driver's part. If importing bitsandbytes made the
    context, it would find the libraries alone, and its limit would be too high."""
    import bitsandbytes  # noqa: F401

    low, _ = CONTEXT_MIB
    taken = context_bytes(setting.device, "float16")
    name = "context, as a stage reads it after bitsandbytes"
    yield row(name, f"at least {low} MiB", mib(taken), taken >= low * MIB, bytes=taken)


def listed(taken: int, holders: dict[int, int]) -> Row:
    """The driver's own list of processes beside the difference."""
    name, expected = "context, by the driver's process list", "the same within 32 MiB"
    if os.getpid() not in holders:
        why = "this process is not in the list: another process namespace, or a driver without one"
        return skipped(name, why, expected)
    message = holders[os.getpid()]
    if not message:
        return skipped(name, "the driver lists this process without bytes, as on WSL2", expected)
    return row(name, expected, mib(message), abs(message - taken) <= LIST_SLACK_BYTES)


def uuid(setting: Setting) -> Iterator[Row]:
    """Whether NVML's first card is torch's."""
    import torch

    ours = device_uuid(setting.device).partition("-")[2]  # after GPU, or MIG
    theirs = str(getattr(torch.cuda.get_device_properties(setting.device), "uuid", ""))
    if not theirs:
        yield skipped("uuid of NVML and of torch", "torch tells none", ours)
        return
    yield row("uuid of NVML and of torch", ours, theirs, theirs.endswith(ours))


def sdpa(setting: Setting) -> Iterator[Row]:
    """What attention takes above its inputs, in both 16-bit types, with a mask and without."""
    import torch

    for dtype in (torch.bfloat16, torch.float16):
        emulated = dtype == torch.bfloat16 and no_bfloat16(setting.device)
        for how, most in SDPA_MIB.items():
            name = f"SDPA, {HEADS} heads, {POSITIONS} tokens, {dtype}, {how}"
            expected = f"below {most} MiB"
            if emulated:
                yield skipped(name, "no fused attention in bf16 before Ampere", expected)
                continue
            found = _attention_bytes(setting.device, dtype, how)
            yield row(name, expected, mib(found), found < most * MIB, bytes=found)


def _attention_bytes(device: str, dtype: Any, how: str) -> int:
    import torch

    shape = (1, HEADS, POSITIONS, WIDTH)
    query = torch.randn(*shape, device=device, dtype=dtype)
    options: dict[str, Any] = {"is_causal": True}
    if how != "causal":
        side = (1, 1, POSITIONS, POSITIONS)
        options = {"attn_mask": torch.ones(*side, dtype=torch.bool, device=device)}
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    torch.nn.functional.scaled_dot_product_attention(query, query, query, **options)
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated(device) - before)
