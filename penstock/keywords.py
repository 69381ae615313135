"""The command line's options as keywords. `python -m scripts.keywords` writes this."""

from collections.abc import Sequence
from os import PathLike
from typing import Any, TypedDict

Words = str | Sequence[str]
"""Texts in a list, or in one text with commas between, as the command line takes them."""


class FeatureOptions(TypedDict, total=False):
    """The options that decide features."""

    recursive: bool
    extensions: Words
    limit: int | None
    model: str | PathLike[str]
    revision: str | None
    as_published: bool | None
    trust_remote_code: bool
    precision: str
    vision_backend: str
    store: str | PathLike[str]
    memory: str | int | None
    batch_size: int
    retry_failed: bool
    keep_frames: bool
    chunk: float | None
    shots: bool
    whole: bool
    fps: float | None
    frames: int | None
    max_frames: int | None
    max_pixels: int | None
    max_video_pixels: int | None
    vision_precision: str | None
    language_precision: str | None
    prompt: str | None


class CaptionOptions(FeatureOptions, total=False):
    """The options of a caption run."""

    out: str | PathLike[str]
    adapter: str | PathLike[str]
    prompts: dict[str, str]
    length: str
    summary: bool
    summary_prompt: str
    sampling_as_card: bool
    sampling: str
    temperature: float | None
    top_p: float | None
    top_k: int | None
    seed: int
    beams: int
    repetition_penalty: float | None
    presence_penalty: float | None
    no_repeat_ngram: int
    avoid: Words
    system: str
    start_with: str
    retry_loops: bool
    schema: str | PathLike[str] | dict[str, Any]
    engine: str
    max_new_tokens: int
    strip_think: bool
    trigger: str
    prefix: str
    suffix: str
    format: Words
    beside: bool
    overwrite: bool
    existing: str | None
