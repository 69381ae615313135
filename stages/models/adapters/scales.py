"""Reads each module's rank and the scale of its B x A from an adapter's configuration. Its patterns
are matched in linear time."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from artifacts.errors import UsageError
from artifacts.patterns import LITERAL, ends_with

COPY_HINT = "Copy it again from where it was trained"
MAX_PATTERNS = 4096
"""Modules whose rank or alpha differs: more than any model has layers."""
MAX_EXPRESSIONS = 64
"""Patterns that are more than the name of a module."""
LARGEST = 2.0**31
"""Ranks and alphas are below it."""


def rank_and_scale(config: Path, settings: Mapping[str, Any], path: str) -> tuple[int, float]:
    """Return the rank of one module, and by what its B x A is multiplied. Raises UsageError."""
    rank = _of_module(config, settings, path, "r", "rank_pattern")
    alpha = _of_module(config, settings, path, "lora_alpha", "alpha_pattern")
    if rank < 1 or rank != int(rank):
        raise UsageError(f"{config}: r is {rank:g}", hint=COPY_HINT)
    return int(rank), alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _of_module(
    config: Path, settings: Mapping[str, Any], path: str, name: str, patterns: str
) -> float:
    """Return a number that the first pattern which meets the end of a module's path may change."""
    found, by_pattern = settings.get(name), settings.get(patterns) or {}
    if not isinstance(by_pattern, dict) or len(by_pattern) > MAX_PATTERNS:
        raise UsageError(
            f"{config}: {patterns} does not map at most {MAX_PATTERNS:,} names to numbers",
            hint=COPY_HINT,
        )
    if sum(not LITERAL.fullmatch(each) for each in by_pattern) > MAX_EXPRESSIONS:
        raise UsageError(
            f"{config}: {patterns} has more than {MAX_EXPRESSIONS} expressions",
            hint="Write the names of modules there",
        )
    try:
        found = next((by_pattern[each] for each in by_pattern if ends_with(each, path)), found)
    except ValueError as error:
        raise UsageError(
            f"{config}: {patterns} cannot be matched: {error}",
            hint="Write the names of modules there, or take another adapter",
        ) from error
    if isinstance(found, bool) or not isinstance(found, int | float) or not abs(found) < LARGEST:
        raise UsageError(f"{config} says no {name}, by which the scale is known", hint=COPY_HINT)
    return found
