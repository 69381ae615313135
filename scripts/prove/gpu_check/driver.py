"""Which card and libraries there are and what they can show. A stand-in for a card shows less, and
is found out by trying."""

import os
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from scripts.prove.gpu_check.rows import Row, Setting, mib, row
from stages.process.device import (
    device_capability,
    device_model,
    driver_version,
)
from stages.process.host_memory import cores, host_total_bytes

LIBRARIES = ("av", "bitsandbytes", "peft")
"""Distributions without which some checks cannot be made."""
LACKS = {
    "device": "tensors do not lie on the device here",
    **{name: f"{name} is not installed" for name in LIBRARIES},
}
"""What a stand-in for a GPU, or an environment, may not have → why a check that needs it is
skipped."""
TOLD = ("transformers", "bitsandbytes")
"""Distributions whose versions the row prints besides torch's."""


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
    yield from (name for name in LIBRARIES if find_spec(name) is None)


def lacks(device: str) -> Iterator[str]:
    """Names of LACKS."""
    import torch

    if not torch.empty(1, device=device).is_cuda:
        yield "device"
