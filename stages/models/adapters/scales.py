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
"""Maximum number of modules with their own rank or alpha: more than the layers of any model."""
MAX_EXPRESSIONS = 64
"""Maximum number of patterns that are not plain module names."""
LARGEST = 2.0**31
"""Exclusive upper bound of ranks and alphas."""


def rank_and_scale(config: Path, settings: Mapping[str, Any], path: str) -> tuple[int, float]:
    """Return the rank of one module and the factor of its B x A. Raises UsageError."""
    rank = _of_module(config, settings, path, "r", "rank_pattern")
    alpha = _of_module(config, settings, path, "lora_alpha", "alpha_pattern")
    if rank < 1 or rank != int(rank):
        raise UsageError(f"{config}: r is {rank:g}", hint=COPY_HINT)
    return int(rank), alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _of_module(
    config: Path, settings: Mapping[str, Any], path: str, name: str, patterns: str
) -> float:
    """Return a setting for a module: the value of the first pattern that matches the end of its
    path, else the general value."""
    found, by_pattern = settings.get(name), settings.get(patterns) or {}
    if not isinstance(by_pattern, dict) or len(by_pattern) > MAX_PATTERNS:
        raise UsageError(
            f"{config}: {patterns} must map at most {MAX_PATTERNS:,} names to numbers",
            hint=COPY_HINT,
        )
    if sum(not LITERAL.fullmatch(each) for each in by_pattern) > MAX_EXPRESSIONS:
        raise UsageError(
            f"{config}: {patterns} has more than {MAX_EXPRESSIONS} expressions",
            hint="Use module names there",
        )
    try:
        found = next((by_pattern[each] for each in by_pattern if ends_with(each, path)), found)
    except ValueError as error:
        raise UsageError(
            f"{config}: {patterns} cannot be matched: {error}",
            hint="Use module names there, or another adapter",
        ) from error
    if isinstance(found, bool) or not isinstance(found, int | float) or not abs(found) < LARGEST:
        raise UsageError(f"{config}: no valid {name}, which determines the scale", hint=COPY_HINT)
    return found
