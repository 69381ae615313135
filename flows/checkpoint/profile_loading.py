"""Gets a checkpoint's profile from the store or from a describing process. That process has memory
and time limits, because the checkpoint's templates and tokenizer may use any amount.
"""

import contextlib
import fnmatch
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from artifacts.errors import CannotFit, EnvironmentFault, OutOfMemory, StageDied, UsageError
from artifacts.keys import digest_of
from artifacts.model_files import WEIGHT_SUFFIXES
from artifacts.packs import Record, RecordSet
from artifacts.store import Store
from flows.checkpoint.model_files import ModelDigests
from flows.console.units import gib
from flows.machine.budget import budget_for
from flows.machine.launch import Launcher, StageCall, run_with_restarts
from flows.options.commands import RunOptions
from flows.options.media import VideoSamplingOptions
from stages.models.hub.checkpoint import SMALL, Checkpoint
from stages.models.natives.registry import native_of
from stages.models.profile import OUTPUT_VERSION, ModelProfile
from stages.models.published import is_published_way
from stages.process.cgroup import host_free_bytes
from stages.process.clock import OVERTIME

LEAST_BYTES = 2 << 30
"""Bytes that describing may take whatever `--memory` says, because a run is then planned for that,
or refused in words. The demo model takes 180 MiB above the imports, the dimensions of Qwen2.5-VL-7B
300 MiB, and both are content with a limit of 512 MiB."""
MOST_SECONDS = 60.0
"""Processor time that a thread of it may take: of ordinary checkpoints the busiest takes 4 to 9."""
SMALL_BYTES = 1 << 30
"""Largest size of a configuration, a tokenizer or a template: the largest known have 40 MB."""
HINT = (
    "No run could read it either; check where it comes from, and its chat_template.jinja, "
    "tokenizer.json and processor_config.json"
)


class Undescribed(UsageError):
    """A checkpoint that cannot be run: no class can caption with it, or its code may not run."""


def read_profile(
    checkpoint: Checkpoint,
    small: Mapping[str, str],
    config: RunOptions,
    files: ModelDigests,
    as_published: bool | None,
    *,
    store: Store,
    launcher: Launcher,
    device: str,
) -> ModelProfile:
    """Return the checkpoint's profile, run `as_published` (None: by the rule); the first time a
    child process, which has transformers, writes it. `small` are the digests of all files but the
    weights, which are noted in `files` before their headers are read. Raises Undescribed,
    ModelChanged."""
    if as_published is False and not is_published_way(checkpoint.folder):
        as_published = None  # the rule says the same: it was described before
    video_options = VideoSamplingOptions.of(config)
    with readable(config.model):
        for path in filter(Path.is_file, _weights_here(checkpoint.folder)):
            files.note(path)
        limit: list[object] = [video_options.max_pixels] if video_options.max_pixels else []
        video = video_options.max_video_pixels
        limit += [f"{video} pixels a video"] if video else []
        way = [] if as_published is None else [f"as published: {as_published}"]
        stated = _stated(checkpoint)
        key = digest_of([small, stated, config.trust_remote_code, *limit, *way])
    record_set = RecordSet(
        store, "cards", digest_of(["cards", OUTPUT_VERSION, version("transformers")])
    )
    if key in record_set:
        return ModelProfile.from_json(record_set.meta(key))
    call = StageCall(
        name="describe",
        arguments={
            "model": checkpoint.name if checkpoint.commit else str(checkpoint.folder),
            "revision": checkpoint.commit,
            "trust_remote_code": config.trust_remote_code,
            "files": files.files.to_json(),
            "max_pixels": video_options.max_pixels or 0,
            "max_video_pixels": video or 0,
            "as_published": as_published,
        },
        device="cpu",
        # Beside the store, because a plan has no folder of outputs.
        log=store.local / "logs" / "describe.log",
        budget=allowed(config, device),
        seconds=MOST_SECONDS,
    )
    try:
        profile = _described(launcher, call, config.model)
    except UsageError as error:
        raise Undescribed(error.message, hint=error.hint) from error
    record_set.publish([Record(key=key, meta=profile)])
    return ModelProfile.from_json(profile)


def allowed(config: RunOptions, device: str) -> int:
    """Return the bytes that describing may take. `--memory` speaks of the GPU where models run on
    one."""
    on_host = config if device == "cpu" else replace(config, memory=None)
    return max(LEAST_BYTES, budget_for(on_host, "cpu").bytes)


def _described(launcher: Launcher, call: StageCall, model: str) -> dict[str, Any]:
    """Return the answer of a describing process. Raises UsageError for a checkpoint that takes too
    much."""
    free = host_free_bytes()
    try:
        profile: dict[str, Any] = run_with_restarts(launcher, call).notes["profile"]
    except OutOfMemory as error:
        if free < call.budget:
            words = f"model {model} cannot be read in {gib(free)}, which is all the memory free"
            raise CannotFit(words, hint="Free some, or run it where there is more") from error
        words = f"model {model} takes more than {gib(call.budget)} of memory to be read"
        raise UsageError(f"{words}, before any weight is loaded", hint=HINT) from error
    except StageDied as error:
        if error.return_code != -OVERTIME:
            raise
        words = f"model {model} takes more than {call.seconds:.0f} s of computing to be read"
        raise UsageError(f"{words}, before any weight is loaded", hint=HINT) from error
    return profile


def _stated(checkpoint: Checkpoint) -> list[Any]:
    """Return what can be known of files of weights without reading them. That is what the hub
    states of them, or their sizes and dates."""
    if checkpoint.weights:
        return [[file.name, file.size, file.digest] for file in checkpoint.weights]
    files = _weights_here(checkpoint.folder)
    return [(p.name, (s := p.stat()).st_size, s.st_mtime_ns) for p in files]


def _weights_here(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in WEIGHT_SUFFIXES)


@contextlib.contextmanager
def readable(model: str) -> Iterator[None]:
    """Turn a file that cannot be read, such as a broken link, into an EnvironmentFault."""
    try:
        yield
    except OSError as error:
        raise EnvironmentFault(
            f"{error.filename} of model {model} cannot be read ({error.strerror})",
            hint="Check the folder, or fetch the model again",
        ) from error


def small_files(checkpoint: Checkpoint) -> Iterable[Path]:
    """Return all files of a checkpoint but its weights: configuration, tokenizer, processor,
    template. What other programs brought from the hub besides decides nothing. Raises UsageError
    for one that is not small at all."""
    taken = SMALL if checkpoint.commit is not None else ("*",)
    found = sorted(
        p
        for p in checkpoint.folder.iterdir()
        if p.is_file()
        and p.suffix.lower() not in WEIGHT_SUFFIXES
        and any(fnmatch.fnmatch(p.name, pattern) for pattern in taken)
    )
    for path in found:
        named = any(fnmatch.fnmatch(path.name, pattern) for pattern in SMALL)
        if named and path.stat().st_size > SMALL_BYTES:
            raise UsageError(f"{path} of the model is larger than {gib(SMALL_BYTES)}", hint=HINT)
    return found


def own_code(folder: Path, *, trusted: bool) -> list[str]:
    """Return what to key of code that a checkpoint names, which may lie in another repository.
    Trusted, it is run even where transformers has a class for the model, and gives other bytes.
    Where this program has one, it is never run."""
    if native_of(folder) is not None:
        return []
    configs = folder.glob("*config.json")
    named = trusted and any(b'"auto_map"' in path.read_bytes() for path in configs)
    return ["its own code"] if named else []
