"""Loads a checkpoint's profile and converts pickled weights to safetensors, in limited processes.

The profile comes from the store, or from a describing process. That process has memory and time
limits, because the checkpoint's templates and tokenizer may use any amount.

Another process converts a model's pickled weights; this module reads none of them itself. The
process has a memory limit that does not depend on the size of the model, because a pickle may
request any amount.
"""

import contextlib
import fnmatch
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from artifacts.digests import digest_of
from artifacts.disk.paths import user_cache
from artifacts.disk.stamps import FileChanged, ModelFileStamp, link_stamp_of, model_stamp_of
from artifacts.errors import (
    CannotFit,
    EnvironmentFault,
    ModelChanged,
    OutOfMemory,
    StageDied,
    UsageError,
)
from artifacts.records.keys import ContentDigests, name_in_hub_cache
from artifacts.records.model_files import HINT, WEIGHT_SUFFIXES, ModelFiles, is_read, small_names
from artifacts.records.packs import Record, RecordSet
from artifacts.records.store import Store
from artifacts.schema import Part
from flows.core.console.display import Display
from flows.core.console.lines import gib
from flows.core.machine.budget import budget_for
from flows.core.machine.launch import DirectLauncher, Launcher, StageCall, run_with_restarts
from flows.core.options.commands import RunOptions
from stages.convert import ConvertJob
from stages.models.half_job import DescribeJob
from stages.models.hub.checkpoint import SMALL, Checkpoint
from stages.models.in_tree.registry import native_of
from stages.models.profile import OUTPUT_VERSION, ModelProfile
from stages.models.published import runs_as_published
from stages.process.cpu_limit import OVERTIME
from stages.process.host_memory import host_free_bytes

TEXT_ONLY = ("generation_config", "chat_template", "readme", "license", ".gitattributes")
"""Files whose names start like this do not affect the vision half. Changing them keeps its features
valid."""


DATE_CALL = b"strftime_now"
"""What a chat template calls to get the date."""
HOLDERS = ("chat_template", "tokenizer_config.", "processor_config.")
"""How the names of files begin that may hold templates."""


class ModelDigests:
    """The file digests of one plan. A file that changes while the plan is made raises
    ModelChanged."""

    def __init__(self, digests: ContentDigests) -> None:
        self._digests = digests
        self._stamps: dict[str, ModelFileStamp] = {}
        self._contents: dict[str, str] = {}
        self._links: dict[str, ModelFileStamp] = {}
        self._names: dict[str, tuple[str, ...]] = {}

    @property
    def files(self) -> ModelFiles:
        return ModelFiles(
            stamps=self._stamps, digests=self._contents, links=self._links, names=self._names
        )

    def of(self, path: Path) -> str:
        """Return the digest of a file that affects the model's results. Raises OSError,
        ModelChanged."""
        with _report_change(path):
            content = self._digests.of_model(path)
        self._note(path, content.stamp, content.digest)
        return content.digest

    def known(self, path: Path) -> str:
        """Return the stored digest without reading the file, or an empty string. Raises
        ModelChanged."""
        content = self._digests.known_of_model(path)
        if content is None:
            return ""
        self._note(path, content.stamp, content.digest)
        return content.digest

    def of_small(self, path: Path) -> str:
        """Return the digest of a file next to the weights. Files that no loader reads may change.
        Raises OSError, ModelChanged."""
        if is_read(path.name):
            return self.of(path)
        with _report_change(path):
            return self._digests.of_model(path).digest

    def note(self, path: Path) -> None:
        """Note the stamp of a file that is about to be read. Raises OSError, ModelChanged."""
        self._note(path, model_stamp_of(path))

    def note_folder(self, checkpoint: Checkpoint) -> None:
        """Note the file names of a user's folder. The folder of a hub commit is not noted: files
        may be added at any time, but their contents are fixed. Raises OSError."""
        if checkpoint.commit is None:
            folder = str(checkpoint.folder)
            self._names[folder] = tuple(small_names(folder))

    def _note(self, path: Path, stamp: ModelFileStamp, digest: str = "") -> None:
        name = str(path)
        before = self._stamps.setdefault(name, stamp)
        relinked = stamp.is_relinked(before) and self._contents.get(name, digest) == digest
        if stamp != before and not relinked:
            raise _changed(path)
        self._stamps[name] = stamp
        if digest:
            self._contents[name] = digest
        if (link := link_stamp_of(path)) is not None:
            self._links[name] = link


@contextlib.contextmanager
def _report_change(path: Path) -> Iterator[None]:
    try:
        yield
    except FileChanged as error:
        raise _changed(path) from error


def _changed(path: Path) -> ModelChanged:
    return ModelChanged(f"{path} was changed or replaced while it was read", hint=HINT)


def template_date(store: Store, folder: Path, small: Mapping[str, str], requested: str) -> str:
    """Return the date, as YYYY-MM-DD, for the templates among the `small` files of a checkpoint
    (name → digest); empty if none asks for one. It is the `requested` one, or that of their first
    use with this store: all later runs, on any day and machine, write the same prompts. Raises
    OSError, EnvironmentFault."""
    names = [name for name in small if name.lower().startswith(HOLDERS)]
    asking = sorted(small[n] for n in names if DATE_CALL in (folder / n).read_bytes())
    if requested or not asking:
        return requested if asking else ""
    dates, key = RecordSet(store, "cards", digest_of(["template dates", 1])), digest_of(asking)
    dates.publish([Record(key=key, meta={"date": date.today().isoformat()})])
    return str(dates.meta(key)["date"])


def digests_of_parts(
    profile: ModelProfile,
    small: Mapping[str, str],
    weights: Mapping[str, str],
    code: Sequence[str],
    today: str = "",
) -> dict[Part, str]:
    """Return part → digest of all that affects its results: the `small` files, its weights, its own
    `code`, and the date of its prompts if its templates ask for one."""
    text = () if profile.prompted else TEXT_ONLY
    seen = {n: d for n, d in small.items() if not n.lower().startswith(text)}
    if today:
        small = {**small, "today": today}
        seen = small if profile.prompted else seen
    return {
        part: digest_of(
            [seen if part == "vision" else small, {s: weights[s] for s in held.shards}, *code]
        )
        for part, held in profile.parts.items()
    }


def with_fetched(files: ModelFiles, weights: Mapping[Path, str]) -> ModelFiles:
    """Return the files with those of `weights` (path → digest) that were downloaded after the plan
    was made. Raises ModelChanged."""
    new = [path for path in weights if str(path) not in files.stamps and os.path.exists(path)]
    if not new:
        return files
    for path in new:
        blob = name_in_hub_cache(Path(os.path.realpath(path)))
        if blob and weights[path] not in ("", blob):
            raise ModelChanged(f"{path} is not the file that the plan was made with", hint=HINT)
    links = {str(path): link for path in new if (link := link_stamp_of(path)) is not None}
    stamps = {str(path): model_stamp_of(path) for path in new}
    digests = {str(path): weights[path] for path in new if weights[path]}
    return files.with_others(ModelFiles(stamps=stamps, digests=digests, links=links))


MAX_BYTES = 1 << 30
"""Memory for a conversion, in bytes above the imports. Parts of tensors take 30 MB; the headers of
100,000 tensors take 300 MB."""


class Converted(NamedTuple):
    """The contents of the folder after the conversion."""

    tensors: int
    """Number of tensors."""
    data_bytes: int
    """Bytes of all tensors, without headers."""
    shards: int
    """Number of safetensors files."""
    there: int
    """Number of shards that existed before."""


def convert(job: ConvertJob, display: Display) -> Converted:
    """Convert a model. Raises PenstockError."""

    call = StageCall(
        name="convert",
        job=job,
        device="cpu",
        log=user_cache() / "logs" / "convert.log",
        budget=MAX_BYTES,
    )
    try:
        notes: dict[str, Any] = run_with_restarts(DirectLauncher(display.on_event), call).notes
    except OutOfMemory as error:
        raise UsageError(
            f"{job.source}: reading it takes more than {gib(MAX_BYTES)} of memory",
            hint="Model weights never need that much; check where the file comes from",
        ) from error
    finally:
        display.close()
    return Converted(*(int(notes[field]) for field in Converted._fields))


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
