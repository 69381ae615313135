"""Tells where FlashAttention computes a half; imports no model library."""

from importlib.metadata import PackageNotFoundError, version

from stages.models.profile import PartProfile
from stages.process.device import device_capability

FLASH = "flash_attention_2"
FLASH_CAPABILITY = (8, 0)
"""Compute capability of the oldest GPUs that FlashAttention 2 runs on (Ampere)."""


def attention(half: PartProfile, dtype: str, device: str) -> str:
    """Return the attention of a half: FlashAttention 2 where all it needs is there. Else it is what
    the model takes by itself."""
    fits = half.flash and dtype in ("bfloat16", "float16") and device.startswith("cuda")
    if fits and flash_installed() and device_capability(device) >= FLASH_CAPABILITY:
        return FLASH
    return half.attention


def flash_installed() -> bool:
    """Return whether the package is there, in a version that transformers takes."""
    try:
        numbers = version("flash-attn").split("+")[0].split(".")[:3]
        return [int(number) for number in numbers] >= [2, 3, 3]
    except (PackageNotFoundError, ValueError):
        return False
