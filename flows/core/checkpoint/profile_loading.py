"""Loads a checkpoint's profile, from the store or from a describing process.

That process has memory and time limits, because the checkpoint's templates and tokenizer may use
any amount.
"""

import contextlib
import fnmatch
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from artifacts.digests import digest_of
from artifacts.errors import CannotFit, EnvironmentFault, OutOfMemory, StageDied, UsageError
from artifacts.records.model_files import WEIGHT_SUFFIXES
from artifacts.records.packs import Record, RecordSet
from artifacts.records.store import Store
from flows.core.checkpoint.model_digests import ModelDigests
from flows.core.console.lines import gib
from flows.core.machine.budget import budget_for
from flows.core.machine.launch import Launcher, StageCall, run_with_restarts
from flows.core.options.commands import RunOptions
from stages.models.half_job import DescribeJob
from stages.models.hub.checkpoint import SMALL, Checkpoint
from stages.models.in_tree.registry import native_of
from stages.models.profile import OUTPUT_VERSION, ModelProfile
from stages.models.published import runs_as_published
from stages.process.cpu_limit import OVERTIME
from stages.process.host_memory import host_free_bytes

MIN_BYTES = 2 << 30
"""Memory for describing, in bytes, even if `--memory` is smaller. The run is then planned or
refused for the smaller value. The demo model takes 180 MiB above the imports, the dimensions of
Qwen2.5-VL-7B 300 MiB; a limit of 512 MiB suffices for both."""
MAX_SECONDS = 60.0
"""CPU time limit of a thread, in seconds. The busiest thread takes 4 to 9 for ordinary
checkpoints."""
SMALL_BYTES = 1 << 30
"""Largest configuration, tokenizer or template, in bytes. The largest known one has 40 MB."""
UNREADABLE_HINT = (
    "Check where it comes from, and its chat_template.jinja, tokenizer.json and "
    "processor_config.json; no run can read it"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Describer:
    """Describes a checkpoint, or a file beside it, in a child process with limits."""

    config: RunOptions
    checkpoint: Checkpoint
    files: ModelDigests
    store: Store
    launcher: Launcher
    device: str

    def describe(self, stage: str, what: str, note: str, **fields: Any) -> dict[str, Any]:
        """Return a note of the process; `fields` are those of its job besides the checkpoint.
        Raises UsageError if it takes too much memory or time; `what` it describes is named then."""
        config, checkpoint = self.config, self.checkpoint
        call = StageCall(
            name=stage,
            job=DescribeJob(
                model=checkpoint.name if checkpoint.commit else str(checkpoint.folder),
                revision=checkpoint.commit,
                trust_remote_code=config.trust_remote_code,
                files=self.files.files,
                **fields,
            ),
            device="cpu",
            # Next to the store, because a plan has no output folder.
            log=self.store.local / "logs" / "describe.log",
            budget=memory_limit(config, self.device),
            seconds=MAX_SECONDS,
        )
        free = host_free_bytes()
        fault: OutOfMemory | StageDied
        try:
            description: dict[str, Any] = run_with_restarts(self.launcher, call).notes[note]
        except OutOfMemory as error:
            if free < call.budget:
                raise CannotFit(
                    f"{what}: cannot be read in the {gib(free)} of free memory",
                    hint="Free some memory, or use a machine with more",
                ) from error
            limit, fault = f"{gib(call.budget)} of memory", error
        except StageDied as error:
            if error.return_code != -OVERTIME:
                raise
            limit, fault = f"{call.seconds:.0f} s of CPU time", error
        else:
            return description
        raise UsageError(
            f"{what}: reading it takes more than {limit}, before any weight is loaded",
            hint=UNREADABLE_HINT,
        ) from fault


def read_profile(
    describer: Describer, small: Mapping[str, str], as_published: bool | None, today: str
) -> ModelProfile:
    """Return the checkpoint's profile. A child process computes it with transformers once.

    `small` holds the digests of all files except the weights. With `as_published`, the model runs
    as its authors published it; None: the checkpoint decides. `today` is the date for templates
    that ask for one; empty: none does. Weight files are noted before their headers are read. Raises
    UsageError for a model that cannot be run, and ModelChanged."""
    config, checkpoint = describer.config, describer.checkpoint
    if as_published is False and not runs_as_published(checkpoint.folder):
        as_published = None  # the checkpoint decides the same, so the stored profile is shared
    video_options = config.groups.video
    with io_errors_as_fault(config.model):
        for path in filter(Path.is_file, _weight_files(checkpoint.folder)):
            describer.files.note(path)
        limit: list[object] = [video_options.max_pixels] if video_options.max_pixels else []
        video = video_options.max_video_pixels
        limit += [f"{video} pixels a video"] if video else []
        variant = [] if as_published is None else [f"as published: {as_published}"]
        variant += [f"today: {today}"] if today else []
        # What needs no reading: as stated by the hub, or sizes and modification times.
        weights: list[Any] = [[file.name, file.size, file.digest] for file in checkpoint.weights]
        if not weights:
            files = _weight_files(checkpoint.folder)
            weights = [(p.name, (s := p.stat()).st_size, s.st_mtime_ns) for p in files]
        key = digest_of([small, weights, config.trust_remote_code, *limit, *variant])
    record_set = RecordSet(
        describer.store, "cards", digest_of(["cards", OUTPUT_VERSION, version("transformers")])
    )
    if key in record_set:
        return ModelProfile.from_json(record_set.meta(key))
    profile = describer.describe(
        "describe",
        f"model {config.model}",
        "profile",
        max_pixels=video_options.max_pixels or 0,
        max_video_pixels=video or 0,
        as_published=as_published,
        today=today,
    )
    record_set.publish([Record(key=key, meta=profile)])
    return ModelProfile.from_json(profile)


def memory_limit(config: RunOptions, device: str) -> int:
    """Return the memory limit of a describing process, in bytes. `--memory` refers to the GPU if
    models run on one."""
    on_host = config if device == "cpu" else replace(config, memory=None)
    return max(MIN_BYTES, budget_for(on_host, "cpu").bytes)


def _weight_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in WEIGHT_SUFFIXES)


@contextlib.contextmanager
def io_errors_as_fault(model: str) -> Iterator[None]:
    """Turn a file that cannot be read, such as a broken link, into an EnvironmentFault."""
    try:
        yield
    except OSError as error:
        raise EnvironmentFault(
            f"{error.filename} of model {model} cannot be read ({error.strerror})",
            hint="Check the folder, or fetch the model again",
        ) from error


def small_files(checkpoint: Checkpoint) -> Iterable[Path]:
    """Return all files of a checkpoint except its weights: configuration, tokenizer, processor,
    template. Other files that programs downloaded from the hub are ignored. Raises UsageError for a
    file that is too large."""
    patterns = SMALL if checkpoint.commit is not None else ("*",)
    paths = sorted(
        p
        for p in checkpoint.folder.iterdir()
        if p.is_file()
        and p.suffix.lower() not in WEIGHT_SUFFIXES
        and any(fnmatch.fnmatch(p.name, pattern) for pattern in patterns)
    )
    for path in paths:
        named = any(fnmatch.fnmatch(path.name, pattern) for pattern in SMALL)
        if named and path.stat().st_size > SMALL_BYTES:
            raise UsageError(
                f"{path} of the model is larger than {gib(SMALL_BYTES)}", hint=UNREADABLE_HINT
            )
    return paths


def custom_code_fields(folder: Path, *, trusted: bool) -> list[str]:
    """Return the key fields of code that a checkpoint names, which may lie in another repository.
    Trusted code runs even if transformers has a class for the model, and gives other bytes. It
    never runs for an in-tree model."""
    if native_of(folder) is not None:
        return []
    configs = folder.glob("*config.json")
    named = trusted and any(b'"auto_map"' in path.read_bytes() for path in configs)
    return ["its own code"] if named else []
