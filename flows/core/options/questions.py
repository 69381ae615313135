"""Options of `penstock ask`: typed questions, which become the prompts of its run."""

import os
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Annotated

from artifacts.errors import UsageError
from artifacts.options import Option
from artifacts.texts.questions import Probes, probes_of
from flows.core.options.answers import ADD_ONE, AnswerOptions
from flows.core.options.commands import DEFAULT_MODEL, RunOptions
from flows.core.options.formats import ANSWERED, FILES
from flows.core.options.groups import Groups, groups_of
from flows.core.options.media import SoundOptions, VideoSamplingOptions
from flows.core.options.model import (
    DEFAULT_MODEL_OPTION,
    AdapterOptions,
    EndpointOptions,
    GpuOptions,
    check_served,
    is_served,
)
from flows.core.options.precision import HalfPrecisionOptions
from flows.core.options.store import FeatureFormOptions, StoreSizeOptions
from flows.core.options.text import OwnerOptions
from flows.core.options.vectors import PARENT, TABLE_FORMATS, own_folder

OWN = frozenset(("out", "format"))
"""Options of a run of questions that are not those of the captions after it."""


@dataclass(frozen=True, kw_only=True)
class AskConfig(
    OwnerOptions,
    AnswerOptions,
    AdapterOptions,
    FeatureFormOptions,
    StoreSizeOptions,
    GpuOptions,
    HalfPrecisionOptions,
    SoundOptions,
    VideoSamplingOptions,
    EndpointOptions,
    RunOptions,
):
    """One run that answers questions."""

    takes_listed_prompts = False
    model: Annotated[str, DEFAULT_MODEL_OPTION] = DEFAULT_MODEL
    """Hub id, folder, or `demo`."""
    out: Annotated[str, own_folder("answers")] = f"{PARENT}/answers"
    """Output folder."""
    format: Annotated[
        tuple[str, ...],
        Option("formats besides jsonl: csv, parquet", FILES, "F,F", values=TABLE_FORMATS),
    ] = ()
    """Formats besides jsonl."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.questions:
            raise UsageError("no question given", hint=ADD_ONE)
        check_served(self)
        _ = self.probes  # raises UsageError for a question that a server cannot answer

    @classmethod
    def before(cls, captions: RunOptions) -> "AskConfig":
        """Return the run that answers the questions of a run of captions, in a folder of its
        output."""
        names = {field.name for field in fields(cls)} - OWN
        taken = {name: getattr(captions, name) for name in names if hasattr(captions, name)}
        return cls(**taken, out=os.path.join(captions.out, ANSWERED))

    @cached_property
    def groups(self) -> Groups:
        """Return the groups; the probes of the questions are the prompts of the run."""
        groups = groups_of(self)
        texts = dict.fromkeys(probe.text for probes in self.probes.values() for probe in probes)
        prompts = {f"probe-{at}": text for at, text in enumerate(texts)}
        return replace(groups, prompts=replace(groups.prompts, prompts=prompts))

    @cached_property
    def probes(self) -> Probes:
        """Return the probes of the questions. Raises UsageError."""
        return probes_of(self.every_question, one_token=is_served(self.model))

    @property
    def engines(self) -> str:
        """Return no engine: an answer is no generated text."""
        return ""
