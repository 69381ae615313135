"""The options of commands as keywords. `python -m scripts.pages.keywords` writes this."""

from collections.abc import Sequence
from os import PathLike
from typing import Any, Required, TypedDict

Words = str | Sequence[str]
"""Texts in a list, or in one text with commas between, as the command line takes them."""


class MediaRunOptions(TypedDict, total=False):
    """The options of each run over media."""

    recursive: bool
    extensions: Words
    limit: int | None
    min_age: str | float | None
    revision: str | None
    trust_remote_code: bool
    precision: str
    vision_backend: str
    store: str | PathLike[str]
    memory: str | int | None
    batch_size: int
    prepare_workers: int | None
    retry_failed: bool
    check_media: bool
    keep_frames: bool
    fps: float | None
    deinterlace: str
    gpus: str | None


class FeatureOptions(MediaRunOptions, total=False):
    """The options that decide features."""

    model: str | PathLike[str]
    chunk: float | None
    shots: bool
    chapters: bool
    whole: bool
    clip_frames: int | None
    clip_fps: float | None
    clip_rest: str
    frames: int | None
    max_frames: int | None
    max_pixels: int | None
    max_video_pixels: int | None
    sound: str
    sound_track: int | None
    vision_precision: str | None
    language_precision: str | None
    features_as: str
    today: str
    prompt: str | None


class CaptionOptions(FeatureOptions, total=False):
    """The options of a caption run."""

    out: str | PathLike[str]
    endpoint: Words
    endpoint_keys: str | PathLike[str]
    insecure_endpoint: bool
    max_store: str | int | None
    adapter: str | PathLike[str]
    language_gguf: str | PathLike[str]
    prompts: dict[str, str]
    length: str
    summary: bool
    summary_prompt: str
    sampling: str
    temperature: float | None
    top_p: float | None
    top_k: int | None
    seed: int
    repetition_penalty: float | None
    presence_penalty: float | None
    no_repeat_ngram: int
    avoid: Words
    system: str
    start_with: str
    retry_loops: bool
    schema: str | PathLike[str] | dict[str, Any]
    engine: str
    slots: int
    max_new_tokens: int
    strip_think: bool
    trigger: str
    prefix: str
    suffix: str
    format: Words
    beside: bool
    clock: str
    overwrite: bool
    existing: str | None
    media: str | None
    clip_sound: str | None
    trainer: Words
    trust_folder: bool
    questions: str | PathLike[str]
    question: dict[str, str]
    decisions: str | PathLike[str]
    keep: str | None
    sift: str | None
    replace: bool


class VectorOptions(MediaRunOptions, total=False):
    """The options of `index`."""

    model: Required[str | PathLike[str]]
    out: str | PathLike[str]
    tiles: str
    max_store: str | int | None


class EmbedOptions(VectorOptions, total=False):
    """The options of `embed`."""

    replace: bool


class LabelRunOptions(MediaRunOptions, total=False):
    """The options of `label`."""

    model: str | PathLike[str]
    out: str | PathLike[str]
    tiles: str
    max_store: str | int | None
    tagger: str | PathLike[str]
    labels: str | PathLike[str] | Sequence[str]
    templates: str | PathLike[str]
    threshold: float | None
    examples: str | PathLike[str]
    top: int
    format: Words
    beside: bool
    clock: str
    overwrite: bool
    existing: str | None
    replace: bool


class AskOptions(MediaRunOptions, total=False):
    """The options of `ask`."""

    model: str | PathLike[str]
    out: str | PathLike[str]
    endpoint: Words
    endpoint_keys: str | PathLike[str]
    insecure_endpoint: bool
    chunk: float | None
    shots: bool
    chapters: bool
    whole: bool
    clip_frames: int | None
    clip_fps: float | None
    clip_rest: str
    frames: int | None
    max_frames: int | None
    max_pixels: int | None
    max_video_pixels: int | None
    sound: str
    sound_track: int | None
    vision_precision: str | None
    language_precision: str | None
    max_store: str | int | None
    features_as: str
    adapter: str | PathLike[str]
    questions: str | PathLike[str]
    question: dict[str, str]
    decisions: str | PathLike[str]
    keep: str | None
    replace: bool
    format: Words


class SiftRunOptions(MediaRunOptions, total=False):
    """The options of `sift`."""

    model: str | PathLike[str]
    out: str | PathLike[str]
    tiles: str
    keep: str | None
    mirrored: bool
    similar: float | None
    chunk: float
    format: Words
    replace: bool


class SearchOptions(TypedDict, total=False):
    """The options of `search`."""

    top: int
    without: Words
    where: str | None
    moments: bool
    within: str
    trust_folder: bool
    ask: str | PathLike[str]
    questions: str | PathLike[str]
    label: str
    least: float
    refine: bool
    store: str | PathLike[str]
    memory: str | int | None
    captions: str | PathLike[str]
    model: str | PathLike[str]
    trust_remote_code: bool


class TuneOptions(TypedDict, total=False):
    """The options of `tune`."""

    model: Required[str | PathLike[str]]
    revision: str | None
    trust_remote_code: bool
    today: str
    store: str | PathLike[str]
    features_as: str
    memory: str | int | None
    lora_rank: int
    recompute: bool
    optimizer: str
    precision: str
    epochs: float | None
    steps: int | None
    batch_size: int
    lr: float
    seed: int
    validate: float
    validate_only: bool
    resume: bool
    max_new_tokens: int
    tensorboard: bool
    out: Required[str | PathLike[str]]


class LearnOptions(TypedDict, total=False):
    """The options of `learn`."""

    memory: str | int | None
    features_as: str
    lora_rank: int
    recompute: bool
    optimizer: str
    precision: str
    epochs: float | None
    steps: int | None
    batch_size: int
    lr: float
    seed: int
    trust_folder: bool
    journal: str | PathLike[str] | Sequence[str | PathLike[str]]
    anyway: bool
    trust_remote_code: bool


class ExportOptions(TypedDict, total=False):
    """The options of `export`."""

    revision: str | None
    trust_remote_code: bool
    adapter: str | PathLike[str]
    store: str | PathLike[str]
    memory: str | int | None
    to: Required[str]
    out: Required[str | PathLike[str]]
    half: str
    calibrate: str | PathLike[str] | Sequence[str | PathLike[str]]
    calibrate_store: str | PathLike[str]
    samples: int
    group: int
    accept: bool


class ServeOptions(TypedDict, total=False):
    """The options of `serve`."""

    today: str
    store: str | PathLike[str]
    index: str | PathLike[str]
    captions: str | PathLike[str]
    labels: str | PathLike[str] | Sequence[str]
    templates: str | PathLike[str]
    model: str | PathLike[str]
    caption_model: str | PathLike[str]
    tiles: str
    trust_remote_code: bool
    vision_backend: str
    memory: str | int | None
    idle: float
    max_batch: int
    max_wait: float
    max_queue: int
    prepare_workers: int | None
    host: str
    port: int
    token_file: str | PathLike[str]
    access_log: str | PathLike[str]
    root: Words
    jobs: str | PathLike[str]
