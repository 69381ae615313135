"""Builds the configuration of the caption run that a folder records."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from artifacts.errors import UsageError
from flows.cli.main import parse
from flows.cli.options import config_of
from flows.options.commands import CaptionConfig
from flows.options.learn import RecordedRun
from flows.results.recorded_command import COMMAND, is_own_command, repeated
from flows.results.rounds import unfinished, usable_rounds
from flows.results.run_read import load_record
from flows.results.run_record import RUN_RECORD

RUN_IT = "Run `penstock caption` once more with the same options, then learn"


def recorded_command(out: Path) -> Mapping[str, Any]:
    """Return the command of the caption run into a folder, if this user ran it on this machine.
    Raises UsageError, EnvironmentFault."""
    record, left = load_record(out), unfinished(usable_rounds(out))
    # A run that was killed while it began has no command, but the round that began it has.
    command = record["command"] if left is None else left["command"]
    if not command or command["words"][:1] != [COMMAND]:
        raise UsageError(f"{out / RUN_RECORD} has no command of a caption run", hint=RUN_IT)
    if not is_own_command(command):
        raise UsageError(
            f"{out / RUN_RECORD} was not written by a command of this user on this machine",
            hint=RUN_IT,
        )
    return dict(command)


def recorded_run(command: Mapping[str, Any]) -> RecordedRun:
    """Return the caption run of a recorded command. Paths are relative to the working directory.
    Raises UsageError."""
    config = config_of(parse(repeated(command["words"])), CaptionConfig)
    return RecordedRun(config=config, command=command)
