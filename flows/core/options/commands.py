"""Configurations of the commands that run over media, and of `penstock cache rebuild`.

Each configuration inherits the option groups that it uses. The groups of a class are listed in
reverse: the last one comes first in `--help`. A field that one command requires has no default in
its group; the other commands give it a default.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar

from artifacts.disk.paths import is_utf8
from artifacts.errors import UsageError
from artifacts.texts.affixes import check_placeholders
from artifacts.texts.trainer_models import form_of
from artifacts.texts.trainers import TRAINERS
from flows.core.options.answers import AnswerOptions
from flows.core.options.data_sets import DataSetOptions
from flows.core.options.formats import COCO
from flows.core.options.groups import Groups, groups_of
from flows.core.options.media import SoundOptions, VideoSamplingOptions
from flows.core.options.model import (
    DEFAULT_MODEL_OPTION,
    AdapterOptions,
    EndpointOptions,
    GgufOptions,
    GpuOptions,
    ModelOptions,
    check_served,
)
from flows.core.options.outputs import OutputOptions
from flows.core.options.precision import HalfPrecisionOptions, PrecisionOptions
from flows.core.options.sources import SourceOptions
from flows.core.options.store import FeatureFormOptions, ResourceOptions, StoreSizeOptions
from flows.core.options.text import (
    EngineOptions,
    FolderOptions,
    OwnerOptions,
    PromptOptions,
    QuestionOptions,
    SiftFirstOptions,
    TextOptions,
    TrustOptions,
    read_schema,
)
from stages.decode.engines import choice_for
from stages.decode.generation import SamplingParams
from stages.decode.json_schema import canonical

DEFAULT_MODEL = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"


@dataclass(frozen=True, kw_only=True)
class MediaOptions(ResourceOptions, PrecisionOptions, ModelOptions, SourceOptions):
    """Options of every command over media: files, model and resource limits."""

    @cached_property
    def groups(self) -> Groups:
        """Return the groups that only some commands offer, each with its defaults where this one
        does not."""
        return groups_of(self)

    @property
    def engines(self) -> str:
        """Return the candidate engines for these prompts. Raises UsageError for an unknown one."""
        groups = self.groups
        return choice_for(groups.engine.engine, len(groups.prompts.prompts))


@dataclass(frozen=True, kw_only=True)
class RunOptions(FolderOptions, MediaOptions):
    """Options of every run over media. Steps that all commands share take this class, and read
    other groups from `config.groups`."""

    takes_listed_prompts: ClassVar[bool] = True
    """Whether a file is given the prompts of its line in a list, in place of the command's."""


@dataclass(frozen=True, kw_only=True)
class CaptionConfig(
    OwnerOptions,
    SiftFirstOptions,
    AnswerOptions,
    TrustOptions,
    DataSetOptions,
    OutputOptions,
    TextOptions,
    EngineOptions,
    SamplingParams,
    PromptOptions,
    GgufOptions,
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
    """One caption run. Field names equal the option names of the command line."""

    model: Annotated[str, DEFAULT_MODEL_OPTION] = DEFAULT_MODEL
    """Hub id, folder, or `demo`."""

    def __post_init__(self) -> None:
        if self.schema:
            object.__setattr__(self, "schema", canonical(read_schema(self.schema)))
        trainers = (form_of(name.partition(":")[0]) for name in self.trainer)
        formats = tuple(dict.fromkeys((*self.format, *trainers)))
        object.__setattr__(self, "format", formats)
        if COCO in self.format:
            raise UsageError(
                "--format coco is for labels only", hint="Run `penstock label`, or leave it out"
            )
        super().__post_init__()
        names = {question.name: question for question in self.every_question}
        for option, affix in (("--prefix", self.prefix), ("--suffix", self.suffix)):
            check_placeholders(option, affix, names)
        toml = [n for n in self.format if n in TRAINERS and "dataset.toml" in TRAINERS[n].names]
        if toml and not is_utf8(self.out):
            text = f"--format {','.join(toml)} states --out in TOML, and its path is not UTF-8"
            raise UsageError(text, hint="Give another --out")
        if self.clip_frames:
            self.rate_of_clips(self.trainer, self.format)
        check_served(self)
        _ = self.engines  # raises UsageError if no engine supports these options

    @property
    def has_own_frames(self) -> bool:
        """Return whether clips of slower videos have that many of their own frames: one of the
        trainers repeats none."""
        return "musubi" in self.format


@dataclass(frozen=True, kw_only=True)
class RebuildConfig(
    QuestionOptions,
    FeatureFormOptions,
    GpuOptions,
    HalfPrecisionOptions,
    SoundOptions,
    VideoSamplingOptions,
    MediaOptions,
):
    """One rebuild of stored features."""

    model: Annotated[str, DEFAULT_MODEL_OPTION] = DEFAULT_MODEL
    """Hub id, folder, or `demo`."""


@dataclass(frozen=True, kw_only=True)
class RebuildRun(RebuildConfig, RunOptions):
    """A rebuild with the folder of its logs and its run record."""
