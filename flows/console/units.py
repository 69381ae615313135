"""Formats and parses times and sizes."""

import math
import re

from artifacts.errors import UsageError

UNITS = {
    "": 1,
    **{f"{letter}B": 1000**power for power, letter in enumerate("KMGTP", 1)},
    **{f"{letter}IB": 1024**power for power, letter in enumerate("KMGTP", 1)},
    **{letter: 1024**power for power, letter in enumerate("KMGTP", 1)},
    "B": 1,
}
"""Unit of a size, in capitals → bytes. `G` means `GiB`, as in most programs that limit memory."""
MIN_UNITLESS_BYTES = 1 << 20
"""A smaller number of bytes without a unit is refused as a mistake; 0 is accepted."""
MEMORY_STEP = 1 << 28
"""Maximum rounding step of a suggested memory limit in bytes: a quarter of a GiB."""


def duration(seconds: float) -> str:
    """Return a time as `8 s`, `3 min 20 s` or `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def pace(rate: float) -> str:
    """Return items per second as `3.2/s`, or slow rates as `2.5/min`."""
    return f"{rate:.1f}/s" if rate >= 0.1 else f"{60 * rate:.1f}/min"


def size(count: int) -> str:
    """Return a size as `512 B`, `3.4 MB` or `18.2 GB`, in powers of ten as for disks."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def gib(count: float) -> str:
    """Return a size as `2.84 GiB`, `310 MiB` or `12.1 MiB`, in powers of two as for memory."""
    if count >= (1 << 30) / 10:
        return f"{count / (1 << 30):.2f} GiB"
    return f"{count / (1 << 20):.{0 if count >= 100 << 20 else 1}f} MiB"


def rounded_up(count: int) -> int:
    """Round a memory limit up: by up to an eighth, at most a quarter of a GiB, to whole MiB."""
    step = min(max(1 << max(count.bit_length() - 4, 0), 1 << 20), MEMORY_STEP)
    return -(-count // step) * step


def written(count: int) -> str:
    """Return a limit from `rounded_up` in option syntax: `40MiB`, `13.25GiB`."""
    return f"{count >> 20}MiB" if count % MEMORY_STEP else f"{count / (1 << 30):g}GiB"


def parse_size(text: str, option: str) -> int:
    """Parse `200GB`, `8G`, `1.5TiB` or `4194304` into bytes. `option`: the option name, for errors.
    Raises UsageError, also for a small number without a unit."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text, re.ASCII)
    unit = UNITS.get(found[2].upper()) if found else None
    if found is None or unit is None or not math.isfinite(size := float(found[1]) * unit):
        raise UsageError(
            f"{option} {text!r} is not a size", hint="Write it like 200GB, 1.5TiB or 800MB"
        )
    if not found[2] and 0 < size < MIN_UNITLESS_BYTES:
        unit = "GiB" if size < 1024 else "MiB"
        raise UsageError(f"{option} {found[1]}: {int(size)} bytes?", hint=f"Write {found[1]}{unit}")
    return int(size)
