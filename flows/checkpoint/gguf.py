"""Finds the GGUF file that runs a checkpoint's language half, also one that the user gives.

A file that a user gives beside a checkpoint is compared with that checkpoint. The module imports no
model library.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.json_shapes import OptionalField, count, read_json, text
from artifacts.keys import digest_of
from artifacts.packages import require_extra
from artifacts.packs import Record, RecordSet
from artifacts.paths import folder_named
from flows.checkpoint.profile_loading import Describer
from flows.options.commands import RunOptions
from flows.options.model import AdapterOptions, GgufOptions
from flows.options.text import EngineOptions
from flows.pipelines import Pipeline, needs_weights
from stages.decode.engines import engines_for, gguf_engine
from stages.models.gguf import EXACT, FILE, FORMAT, MANIFEST, PACKAGES, GgufShape
from stages.models.hub.checkpoint import Checkpoint
from stages.models.profile import ModelProfile

AGAIN = "Export it again, into a new folder: penstock export MODEL --to gguf-q8_0 --out DIR"

SHAPE = {
    **dict.fromkeys(("format", "bytes", "parameters"), count),
    **dict.fromkeys(("kind", "sha256"), text),
    "penstock_only": OptionalField(text),
}
DIMENSIONS = {"width": count, "inner": count, "heads": count, "whole": count}


@dataclass(frozen=True, kw_only=True, slots=True)
class GgufUse:
    """The GGUF file that a language half runs with."""

    path: str
    kind: str
    """Kind of the export, such as `gguf-q4_0`."""
    digest: str
    """SHA-256 of the file: part of the cache key."""
    bytes: int
    parameters: int
    shape: GgufShape
    replaced: int = 0
    """Number of the checkpoint's parameters that it replaces."""
    copy: str = ""
    """Path of the copy that is made if llama.cpp needs another header; empty for an export."""

    @property
    def key_fields(self) -> tuple[str, ...]:
        """Return its fields of a cache key: the file, and how llama.cpp computes if not exactly."""
        return (self.digest, *(() if self.shape.exact else ("kv f16", "flash attention")))


def gguf_for(
    config: RunOptions, folder: Path, digest: Callable[[Path], str], *pipelines: Pipeline
) -> GgufUse | None:
    """Return the GGUF file of an exported folder, or None for another checkpoint. `digest` returns
    the digest of a file, or an empty string if it is unknown. `pipelines` are those of the command.
    Raises UsageError if the options ask for something else, EnvironmentFault for a changed file."""
    engine = EngineOptions.of(config).engine
    if GgufOptions.of(config).language_gguf:
        return None
    if not (folder / MANIFEST).exists():
        if (folder / FILE).exists():
            raise EnvironmentFault(f"{folder} has {FILE}, but lacks {MANIFEST}", hint=AGAIN)
        if any(each.gguf for each in engines_for(engine)):
            raise UsageError(
                f"--engine {engine}: the language half of {config.model} is no GGUF file",
                hint=f"Make one: penstock export {config.model} --to gguf-q8_0 --out DIR, then "
                "--model DIR; or give one of another program: --language-gguf FILE",
            )
        return None
    check_options(config, pipelines)
    noted = read_json(folder / MANIFEST, {**SHAPE, **DIMENSIONS}, AGAIN)
    if noted["format"] != FORMAT or not (folder / FILE).exists():
        raise EnvironmentFault(f"{folder} lacks {FILE}, or has another version of it", hint=AGAIN)
    found = digest(folder / FILE)
    if found not in ("", noted["sha256"]):
        raise EnvironmentFault(
            f"{folder / FILE} differs from the exported file: it was changed or damaged", hint=AGAIN
        )
    return gguf_use(noted, path=str(folder / FILE), digest=noted["sha256"])


def gguf_use(fields: Mapping[str, Any], *, path: str, digest: str, copy: str = "") -> GgufUse:
    """Return the use of a file that a manifest, or the process that compared it, describes."""
    return GgufUse(
        path=path,
        kind=fields["kind"],
        digest=digest,
        bytes=fields["bytes"],
        parameters=fields["parameters"],
        shape=GgufShape(
            **{name: fields[name] for name in DIMENSIONS}, exact=fields["kind"] == EXACT
        ),
        replaced=fields.get("replaced", 0),
        copy=copy,
    )


def check_options(config: RunOptions, pipelines: Sequence[Pipeline]) -> None:
    """Raise UsageError for options that a GGUF file excludes, MissingPackage without the packages
    that it needs."""
    engine = EngineOptions.of(config).engine
    half = f"the language half of {config.model} is a GGUF file"
    give = "give the checkpoint that it was exported from"
    for excluded, why, hint in (
        (not gguf_engine(engine), f"--engine {engine}: {half}", f"Leave --engine out, or {give}"),
        (
            needs_weights(pipelines),
            f"{half}, which cannot be trained or exported again",
            give.capitalize(),
        ),
        (
            AdapterOptions.of(config).adapter,
            f"--adapter: {half}",
            "Export the original with --adapter, which merges it",
        ),
    ):
        if excluded:
            raise UsageError(why, hint=hint)
    require_extra("gguf", config.model)


def gguf_note(folder: Path) -> str:
    """Return which programs can use the GGUF file of an exported folder, in one line; empty for
    another folder. Raises EnvironmentFault for a damaged manifest."""
    if not (folder / MANIFEST).exists():
        return ""
    noted = read_json(folder / MANIFEST, SHAPE, AGAIN)
    if why := noted.get("penstock_only", "it has no tokenizer"):
        return f"{FILE} is for Penstock only: {why}"
    return f"{FILE} has the tokenizer and the chat template: llama.cpp can chat with it, in text"


CHECK_VERSION = 1
"""Version of the comparison; raised when it changes."""
COPIES = "language-files"
"""Folder beside the store with the copies that llama.cpp needs."""


def user_gguf_for(
    describer: Describer,
    profile: ModelProfile,
    small: Mapping[str, str],
    digest: Callable[[Path], str],
    *pipelines: Pipeline,
) -> GgufUse:
    """Return the user's file as a run uses it. `small` holds the digests of the checkpoint's files
    except weights; `digest` returns that of a file, or an empty string. The first time, a child
    process compares the file with the checkpoint. Raises PenstockError."""
    config, store = describer.config, describer.store
    path = folder_named(GgufOptions.of(config).language_gguf, "language-gguf")
    _check_checkpoint(config, describer.checkpoint, profile, path)
    check_options(config, pipelines)
    found = digest(path)
    describer.files.note(path)
    records = RecordSet(
        store, "cards", digest_of(["user file", CHECK_VERSION, *map(version, PACKAGES)])
    )
    key = digest_of([found, small, profile.as_published])
    if found and key in records:
        fields = records.meta(key)
    else:
        fields = describer.describe("describe_gguf", str(path), "file", gguf=str(path))
        if found:
            records.publish([Record(key=key, meta=fields)])
    copy = store.local / COPIES / f"{found[:32]}-{CHECK_VERSION}.gguf"
    return gguf_use(fields, path=str(path), digest=found, copy=str(copy))


def _check_checkpoint(
    config: RunOptions, checkpoint: Checkpoint, profile: ModelProfile, path: Path
) -> None:
    """Raise UsageError for a checkpoint that takes no GGUF file, or if there is no file."""
    why = ""
    if profile.route in ("dual", "joint"):
        why = f"{profile.class_name} has no language half that could be replaced"
    elif (checkpoint.folder / MANIFEST).exists():
        why = "its language half is a GGUF file already"
    elif profile.language.stored_as:
        why = f"its language half was saved in {profile.language.stored_as}"
    if why:
        raise UsageError(
            f"--language-gguf: not possible for {config.model} ({why})",
            hint="Leave it out, or give the original checkpoint that the file was made from",
        )
    if not path.is_file():
        why = "this is no regular file" if path.exists() else "there is no such file"
        raise UsageError(f"--language-gguf {path}: {why}", hint="Give a GGUF file")
