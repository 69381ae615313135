"""The options of a run by group: `config.groups.engine.max_new_tokens`.

The commands over media share most steps, and each offers some of the groups. A step reads the
groups that it needs from here, whatever the command is.
"""

from dataclasses import dataclass, fields
from functools import cache
from typing import Any, get_type_hints

from artifacts.options import OptionGroup
from flows.core.options.answers import AnswerOptions
from flows.core.options.data_sets import DataSetOptions
from flows.core.options.media import SoundOptions, VectorSamplingOptions, VideoSamplingOptions
from flows.core.options.model import (
    AdapterOptions,
    DateOptions,
    EndpointOptions,
    GgufOptions,
    GpuOptions,
    PassOptions,
    RecordedAdapterOptions,
    TaggerOptions,
)
from flows.core.options.outputs import OutputOptions
from flows.core.options.precision import HalfPrecisionOptions
from flows.core.options.store import FeatureFormOptions, StoreSizeOptions
from flows.core.options.text import (
    EngineOptions,
    OwnerOptions,
    PromptOptions,
    QuestionOptions,
    SiftFirstOptions,
    TextOptions,
    TrustOptions,
)
from flows.core.options.trained_half import LearnedOptions
from stages.decode.generation import SamplingParams


@dataclass(frozen=True, kw_only=True, slots=True)
class Groups:
    """The groups that only some commands offer. A group that a command does not offer has its
    defaults."""

    video: VideoSamplingOptions
    vectors: VectorSamplingOptions
    sound: SoundOptions
    halves: HalfPrecisionOptions
    gpus: GpuOptions
    store_size: StoreSizeOptions
    feature_form: FeatureFormOptions
    endpoint: EndpointOptions
    adapter: AdapterOptions
    recorded_adapter: RecordedAdapterOptions
    gguf: GgufOptions
    tagger: TaggerOptions
    passes: PassOptions
    date: DateOptions
    question: QuestionOptions
    prompts: PromptOptions
    generation: SamplingParams
    engine: EngineOptions
    text: TextOptions
    outputs: OutputOptions
    data_sets: DataSetOptions
    owner: OwnerOptions
    trust: TrustOptions
    sift_first: SiftFirstOptions
    answers: AnswerOptions
    training: LearnedOptions


def groups_of(config: OptionGroup) -> Groups:
    """Return the groups of a command's configuration, which inherits those that it offers."""
    groups: dict[str, Any] = {
        name: config if isinstance(config, kind) else default
        for name, (kind, default) in _defaults().items()
    }
    return Groups(**groups)


@cache
def _defaults() -> dict[str, tuple[type[OptionGroup], OptionGroup]]:
    kinds = get_type_hints(Groups)
    return {field.name: (kinds[field.name], kinds[field.name]()) for field in fields(Groups)}
