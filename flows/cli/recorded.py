"""Builds the configuration of the caption run that a folder records."""

from collections.abc import Mapping
from typing import Any

from flows.cli.main import parse
from flows.cli.options import config_of
from flows.options.commands import CaptionConfig
from flows.options.learn import RecordedRun
from flows.results.recorded_command import repeated


def recorded_run(command: Mapping[str, Any]) -> RecordedRun:
    """Return the caption run of a recorded command. Paths are relative to the working directory.
    Raises UsageError."""
    config = config_of(parse(repeated(command["words"])), CaptionConfig)
    return RecordedRun(config=config, command=command)
