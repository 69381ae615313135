"""Builds the configuration of the caption run that a folder records."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.cli.main import parse
from flows.cli.options import config_of
from flows.options.commands import CaptionConfig
from flows.options.learn import RecordedRun
from flows.results.recorded_command import repeated
from flows.results.run_read import load_record
from flows.results.trust import command_in


def recorded_command(out: Path, *, trust: bool) -> Mapping[str, Any]:
    """Return the command of the caption run into a folder, if this user ran it, or trusts the
    folder. Raises UsageError, EnvironmentFault."""
    load_record(out)  # says so if there was no run
    words, folder = command_in(out, trust=trust)
    return {"words": words, "folder": folder}


def recorded_run(command: Mapping[str, Any]) -> RecordedRun:
    """Return the caption run of a recorded command. Paths are relative to the working directory.
    Raises UsageError."""
    config = config_of(parse(repeated(command["words"])), CaptionConfig)
    return RecordedRun(config=config, command=command)
