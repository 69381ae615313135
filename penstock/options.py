"""Takes the options of the command line as keywords, with their types; runs nothing."""

from collections.abc import Iterable
from os import PathLike, fspath
from typing import TypedDict

from artifacts.errors import UsageError
from artifacts.words import meant
from flows.console.units import parse_size
from flows.job.config import CaptionConfig

Sources = str | PathLike[str] | Iterable[str | PathLike[str]]
"""Files, folders, globs or lists, as the command line takes them."""


class FeatureOptions(TypedDict, total=False):
    """The options that decide features, and how they are made."""

    model: str
    revision: str | None
    prompt: str | None
    store: str
    as_published: bool
    trust_remote_code: bool
    chunk: float | None
    shots: bool
    whole: bool
    fps: float | None
    frames: int | None
    max_frames: int | None
    max_pixels: int | None
    memory: str | int | None
    """Bytes, or a text such as `8GiB`."""
    precision: str
    vision_precision: str | None
    language_precision: str | None
    vision_backend: str
    batch_size: int
    recursive: bool
    extensions: tuple[str, ...]
    limit: int | None
    retry_failed: bool
    keep_frames: bool


class CaptionOptions(FeatureOptions, total=False):
    """The other options of a caption run."""

    out: str
    adapter: str
    prompts: dict[str, str]
    length: str
    summary: bool
    summary_prompt: str
    system: str
    start_with: str
    avoid: tuple[str, ...]
    sampling: str
    temperature: float | None
    top_p: float | None
    top_k: int | None
    seed: int
    beams: int
    repetition_penalty: float | None
    no_repeat_ngram: int
    retry_loops: bool
    strip_think: bool
    schema: str
    engine: str
    max_new_tokens: int
    trigger: str
    prefix: str
    suffix: str
    format: tuple[str, ...]
    beside: bool
    overwrite: bool
    existing: str | None


def config_for(
    sources: Sources,
    options: FeatureOptions,
    known: type[FeatureOptions] = CaptionOptions,
) -> CaptionConfig:
    """Return the configuration that these mean. Raises UsageError, also for an option that is not
    among those `known`."""
    if unknown := sorted(options.keys() - known.__annotations__.keys()):
        raise UsageError(
            f"there is no option {unknown[0]}{meant(unknown[0], known.__annotations__)}",
            hint="Options are those of the command: --max-new-tokens 64 is max_new_tokens=64",
        )
    named = [sources] if isinstance(sources, str | PathLike) else sources
    memory = options.get("memory")
    size = parse_size(memory, "memory") if isinstance(memory, str) else memory
    values = {**options, "memory": size}
    return CaptionConfig(sources=tuple(fspath(source) for source in named), **values)  # type: ignore[arg-type]
