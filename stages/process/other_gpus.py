"""Names the GPUs of this machine that Penstock cannot use, from what the kernel lists."""

import platform
from pathlib import Path

CARDS = Path("/sys/class/drm")
AMD, INTEL, NVIDIA = "0x1002", "0x8086", "0x10de"
INTEGRATED = "0000:00:02.0"
"""PCI address of Intel's integrated graphics."""
MIN_VIDEO_BYTES = 4 << 30
"""Video memory from which an AMD GPU counts: integrated ones reserve less."""


def unused_gpu(cards: Path = CARDS) -> str:
    """Return one sentence on a GPU that is there while models run on the CPU; empty if there is
    none."""
    if platform.system() == "Darwin":
        return "GPUs by Apple are not supported"
    for device in sorted(path.resolve() for path in cards.glob("card[0-9]*/device")):
        vendor = _read(device / "vendor")
        if vendor == NVIDIA:
            return "there is an NVIDIA GPU, but its driver does not respond: run nvidia-smi"
        if vendor == AMD and int(_read(device / "mem_info_vram_total") or 0) >= MIN_VIDEO_BYTES:
            return "there is a GPU by AMD, which is not supported"
        if vendor == INTEL and device.name != INTEGRATED:
            return "there is a GPU by Intel, which is not supported"
    return ""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
