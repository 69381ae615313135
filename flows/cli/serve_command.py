"""Runs `penstock serve` until it is asked to end."""

import argparse
import re
from typing import TYPE_CHECKING

from artifacts.errors import UsageError
from flows.console.display import Display
from flows.console.units import parse_size

if TYPE_CHECKING:
    from flows.serving.config import ServeConfig

UNITS = {"": 1.0, "s": 1.0, "ms": 0.001}


def serve_command(given: argparse.Namespace) -> int:
    """Serve, and return the exit code of the contract. Raises PenstockError."""
    from flows.serving.server import serve

    serve(config_of(given), Display(quiet=given.quiet))
    return 0


def config_of(given: argparse.Namespace) -> "ServeConfig":
    """Return what the options ask for. Raises UsageError."""
    from flows.serving.config import ServeConfig

    return ServeConfig(
        model=given.model,
        caption_model=given.caption_model,
        index=given.index,
        labels=given.labels,
        templates=given.templates,
        store=given.store,
        tiles=given.tiles,
        memory=parse_size(given.memory, "--memory") if given.memory else None,
        vision_backend=given.vision_backend,
        trust_remote_code=given.trust_remote_code,
        host=given.host,
        port=given.port,
        token_file=given.token_file,
        idle=given.idle,
        max_batch=batch_of(given.max_batch),
        max_wait=seconds_of(given.max_wait),
        max_queue=given.max_queue,
    )


def batch_of(told: str) -> int:
    """Return the batch that the option means; 0: what fits. Raises UsageError."""
    if told == "auto":
        return 0
    if not told.isdecimal() or not int(told):
        raise UsageError(f"--max-batch {told} is no number", hint="Give auto, or 1 or more")
    return int(told)


def seconds_of(told: str) -> float:
    """Return the seconds that a time such as 10ms means. Raises UsageError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|)", told.strip())
    if found is None:
        raise UsageError(f"--max-wait {told} is no time", hint="Give 10ms, or 0.01s")
    return float(found[1]) * UNITS[found[2]]
