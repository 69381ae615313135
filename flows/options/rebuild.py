"""Options of `penstock cache rebuild`."""

from dataclasses import dataclass
from typing import Annotated

from flows.options.commands import DEFAULT_MODEL, MediaOptions, RunOptions
from flows.options.media import VideoSamplingOptions
from flows.options.model import (
    DEFAULT_MODEL_OPTION,
    HalfPrecisionOptions,
)
from flows.options.text import QuestionOptions


@dataclass(frozen=True, kw_only=True)
class RebuildConfig(QuestionOptions, HalfPrecisionOptions, VideoSamplingOptions, MediaOptions):
    """One rebuild of stored features."""

    model: Annotated[str, DEFAULT_MODEL_OPTION] = DEFAULT_MODEL
    """Hub id, folder, or `demo`."""


@dataclass(frozen=True, kw_only=True)
class RebuildRun(RebuildConfig, RunOptions):
    """A rebuild with the folder of its logs and its run record."""
