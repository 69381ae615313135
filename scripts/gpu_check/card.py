"""Which card and libraries there are and what they can show. A stand-in for a card shows less, and
is found out by trying."""

import os
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from scripts.gpu_check.rows import MIB, Row, mib, row
from scripts.gpu_check.setting import Setting
from stages.process.cgroup import cores, host_total_bytes
from stages.process.device import device_capability, device_model, driver_version

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
    """Whether the GPU is one that the tests made up, of which no page may be written."""
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
