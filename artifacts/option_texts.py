"""Reads the texts that options are given as: numbers, and lists with commas."""

import math
import re
from typing import Any

from artifacts.errors import UsageError

NUMBERS = {
    int: re.compile(r"[+-]?[0-9]{1,30}"),
    float: re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?"),
}
"""Type of a number → the texts that state one: in ASCII digits, and none that is not finite."""
NUMBER_NAMES = {int: "a whole number", float: "a number"}
GIVE_VALUE = "Give a value, or check the variable that should hold it"
"""Hint of the error for an empty value."""


def number(text: str, kind: type[Any]) -> Any:
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
