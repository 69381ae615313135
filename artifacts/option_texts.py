"""Reads the texts that options are given as: numbers, sizes, and lists with commas."""

import math
import re
from collections.abc import Sequence
from typing import TypeVar

from artifacts.errors import UsageError

N = TypeVar("N", int, float)
NUMBERS = {
    int: re.compile(r"[+-]?[0-9]{1,30}"),
    float: re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?"),
}
"""Type of a number → the texts that state one: in ASCII digits, and none that is not finite."""
NUMBER_NAMES = {int: "a whole number", float: "a number"}
GIVE_VALUE = "Give a value, or check the variable that should hold it"
"""Hint of the error for an empty value."""


def number(text: str, kind: type[N]) -> N:
    """Return the number that a text states, as an int or a float. Raises ValueError for all that
    Python reads beyond it: digits of other scripts, `1_000`, blanks, nan, inf."""
    if not NUMBERS[kind].fullmatch(text) or not math.isfinite(value := kind(text)):
        raise ValueError(f"not {NUMBER_NAMES[kind]}: {text!r}")
    return value


def members(flag: str, text: str) -> tuple[str, ...]:
    """Return the texts of a list that has commas between them. Raises UsageError for none."""
    parts = tuple(part.strip() for part in text.split(",") if part.strip())
    if not parts:
        raise UsageError(f"{flag} is empty", hint=GIVE_VALUE)
    return parts


def named_texts(flag: str, example: str, given: Sequence[str]) -> dict[str, str]:
    """Return texts by name, in order, of an option that is given as NAME=TEXT, once for each.
    Raises UsageError."""
    texts: dict[str, str] = {}
    for option in given:
        name, equals, text = option.partition("=")
        if not equals or name in texts:
            fault = "the name is there twice" if equals else "the name is missing"
            raise UsageError(f"{flag} {option!r}: {fault}", hint=f"Write NAME=TEXT: {example}")
        texts[name] = text
    return texts


TIME_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
DURATION_TEXT = r"^\s*[0-9]+(\.[0-9]+)?\s*[smhd]?\s*$"
"""Pattern of the texts that `parse_duration` accepts, for the schema of a form."""


def parse_duration(text: str, option: str) -> float:
    """Parse `90`, `90s`, `10m`, `1.5h` or `2d` into seconds. `option`: the option name, for errors.
    Raises UsageError."""
    match = re.fullmatch(r"\s*(\d{1,12}(?:\.\d+)?)\s*([smhd]?)\s*", text, re.ASCII)
    if match is None:
        raise UsageError(f"{option} {text!r} is not a time", hint="Write it like 90s, 10m or 2h")
    return float(match[1]) * TIME_UNITS[match[2]]


UNITS = {
    "": 1,
    **{f"{letter}B": 1000**power for power, letter in enumerate("KMGTP", 1)},
    **{f"{letter}IB": 1024**power for power, letter in enumerate("KMGTP", 1)},
    **{letter: 1024**power for power, letter in enumerate("KMGTP", 1)},
    "B": 1,
}
"""Unit of a size, in capitals → bytes. `G` means `GiB`, as in most programs that limit memory."""
SIZE_TEXT = r"^\s*[0-9]+(\.[0-9]+)?\s*([KMGTPkmgtp]([Ii]?[Bb])?|[Bb])?\s*$"
"""Pattern of the texts that `parse_size` accepts, for the schema of a form."""
MIN_UNITLESS_BYTES = 1 << 20
"""A smaller number of bytes without a unit is refused as a mistake; 0 is accepted."""


def parse_size(text: str, option: str) -> int:
    """Parse `200GB`, `8G`, `1.5TiB` or `4194304` into bytes. `option`: the option name, for errors.
    Raises UsageError, also for a small number without a unit."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text, re.ASCII)
    unit = UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None or not math.isfinite(size := float(match[1]) * unit):
        raise UsageError(
            f"{option} {text!r} is not a size", hint="Write it like 200GB, 1.5TiB or 800MB"
        )
    if not match[2] and 0 < size < MIN_UNITLESS_BYTES:
        unit = "GiB" if size < 1024 else "MiB"
        raise UsageError(f"{option} {match[1]}: {int(size)} bytes?", hint=f"Write {match[1]}{unit}")
    return int(size)
