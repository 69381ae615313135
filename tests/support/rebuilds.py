"""Rebuilds over the files of a run that captions."""

from dataclasses import fields
from typing import Any

from flows.core.options.commands import RebuildConfig
from flows.core.options.model import ModelOptions


def rebuilding(config: ModelOptions) -> RebuildConfig:
    """The rebuild with the options that a configuration shares with it."""
    shared: dict[str, Any] = {
        each.name: getattr(config, each.name) for each in fields(RebuildConfig)
    }
    return RebuildConfig(**shared)
