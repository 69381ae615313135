"""Takes the options of the command line as keywords, with their types; runs nothing."""

from collections.abc import Iterable, Sequence
from os import PathLike
from typing import Any, TypedDict

from flows.job.config import CaptionConfig
from penstock.arguments import checked, known_only, sources_of

Words = str | Sequence[str]
"""Texts in a list, or in one text with commas between, as the command line takes them."""
Sources = str | PathLike[str] | Iterable[str | PathLike[str]]
"""Files, folders, globs or lists, as the command line takes them."""


class FeatureOptions(TypedDict, total=False):
    """The options that decide features, and how they are made."""

    model: str | PathLike[str]
    revision: str | None
    prompt: str | None
    store: str | PathLike[str]
    as_published: bool | None
    trust_remote_code: bool
    chunk: float | None
    shots: bool
    whole: bool
    fps: float | None
    frames: int | None
    max_frames: int | None
    max_pixels: int | None
    max_video_pixels: int | None
    memory: str | int | None
    """Bytes, or a text such as `8GiB`."""
    precision: str
    vision_precision: str | None
    language_precision: str | None
    vision_backend: str
    batch_size: int
    recursive: bool
    extensions: Words
    limit: int | None
    retry_failed: bool
    keep_frames: bool


class CaptionOptions(FeatureOptions, total=False):
    """The other options of a caption run."""

    out: str | PathLike[str]
    adapter: str | PathLike[str]
    prompts: dict[str, str]
    length: str
    summary: bool
    summary_prompt: str
    system: str
    sampling_as_card: bool
    start_with: str
    avoid: Words
    sampling: str
    temperature: float | None
    top_p: float | None
    top_k: int | None
    seed: int
    beams: int
    repetition_penalty: float | None
    presence_penalty: float | None
    no_repeat_ngram: int
    retry_loops: bool
    strip_think: bool
    schema: str | PathLike[str] | dict[str, Any]
    """A file, its text, or what the text means."""
    engine: str
    max_new_tokens: int
    trigger: str
    prefix: str
    suffix: str
    format: Words
    beside: bool
    overwrite: bool
    existing: str | None


def config_for(
    sources: Sources,
    options: FeatureOptions,
    known: type[FeatureOptions] = CaptionOptions,
) -> CaptionConfig:
    """Return the configuration that these mean. Raises UsageError, also for an option that is not
    among those `known`, and for a value of another type than its field has."""
    known_only(options, known.__annotations__)
    return CaptionConfig(sources=sources_of(sources), **checked(CaptionConfig, options))
