"""Which card there is and what it can show; a stand-in for one shows less, and is found out by
trying."""

import os
from collections.abc import Iterator, Mapping

from scripts.gpu_check.rows import MIB, Row, row
from scripts.gpu_check.setting import Setting
from stages.process.device import device_capability, device_model, driver_version

LACKS = {
    "device": "tensors do not lie on the device here",
    "allocator": "torch's allocator does not count what a tensor takes here",
    "streams": "there are no streams of torch's own here",
}
"""What a stand-in for a GPU may not have → why a check that needs it is skipped."""
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
    told = {
        "name": device_model(setting.device) or "a GPU without a name",
        "driver": driver_version(setting.device) or "of unknown version",
        "capability": ".".join(map(str, device_capability(setting.device))),
        "torch": torch.__version__,
    }
    yield row("card", "8 x 8 ones multiplied give 8", card_words(told), good)
    yield row("lacks", "", ",".join(lacks(setting.device)), True)


def card_words(told: Mapping[str, str]) -> str:
    return (
        f"{told['name']}, driver {told['driver']}, compute capability {told['capability']}, "
        f"torch {told['torch']}"
    )


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
