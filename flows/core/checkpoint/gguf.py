"""Describes the GGUF file that a user gives for a checkpoint's language half, after a comparison
with that checkpoint. Imports no model library."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from artifacts.digests import digest_of
from artifacts.disk.paths import folder_named
from artifacts.errors import UsageError
from artifacts.packages import require_extra
from artifacts.records.packs import Record, RecordSet
from flows.core.checkpoint.profile_loading import Describer
from flows.core.options.commands import RunOptions
from flows.core.pipelines import Pipeline, needs_weights
from stages.decode.engines import engines_for, gguf_engine
from stages.models.gguf import EXACT, PACKAGES, GgufShape
from stages.models.profile import ModelProfile

DIMENSIONS = ("width", "inner", "heads", "whole")
CHECK_VERSION = 2
"""Version of the comparison; raised when it changes."""
COPIES = "language-files"
"""Folder beside the store with the copies that llama.cpp needs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GgufUse:
    """The GGUF file that a language half runs with."""

    path: str
    kind: str
    """Its kind, such as `gguf-q4_0`."""
    digest: str
    """SHA-256 of the file: part of the cache key."""
    bytes: int
    parameters: int
    shape: GgufShape
    replaced: int
    """Number of the checkpoint's parameters that it replaces."""
    copy: str
    """Path of the copy that is made if llama.cpp needs another header."""

    @property
    def key_fields(self) -> tuple[str, ...]:
        """Return its fields of a cache key: the file, and how llama.cpp computes if not exactly."""
        return (self.digest, *(() if self.shape.exact else ("kv f16", "flash attention")))


def gguf_for(
    describer: Describer,
    profile: ModelProfile,
    small: Mapping[str, str],
    digest: Callable[[Path], str],
    *pipelines: Pipeline,
) -> GgufUse | None:
    """Return the user's file as a run uses it; None: no file is given. `small` holds the digests of
    the checkpoint's files except weights; `digest` returns that of a file, or an empty string. The
    first time, a child process compares the file with the checkpoint. Raises PenstockError."""
    config, store = describer.config, describer.store
    named, engine = config.groups.gguf.language_gguf, config.groups.engine.engine
    if not named and any(e.gguf for e in engines_for(engine)):
        raise UsageError(
            f"--engine {engine}: the language half of {config.model} is no GGUF file",
            hint="Give one of this checkpoint: --language-gguf FILE (docs/gguf.md says how to make "
            "it)",
        )
    if not named:
        return None
    path = folder_named(named, "language-gguf")
    _check_checkpoint(config, profile, path)
    _check_options(config, pipelines)
    file_digest = digest(path)
    describer.files.note(path)
    records = RecordSet(
        store, "cards", digest_of(["user file", CHECK_VERSION, *map(version, PACKAGES)])
    )
    key = digest_of([file_digest, small, profile.as_published])
    if file_digest and key in records:
        fields = records.meta(key)
    else:
        fields = describer.describe("describe_gguf", str(path), "file", gguf=str(path))
        if file_digest:
            records.publish([Record(key=key, meta=fields)])
    copy = store.local / COPIES / f"{file_digest[:32]}-{CHECK_VERSION}.gguf"
    return gguf_use(fields, path=str(path), digest=file_digest, copy=str(copy))


def gguf_use(fields: Mapping[str, Any], *, path: str, digest: str, copy: str) -> GgufUse:
    """Return the use of a file that the process which compared it describes."""
    return GgufUse(
        path=path,
        kind=fields["kind"],
        digest=digest,
        bytes=fields["bytes"],
        parameters=fields["parameters"],
        shape=GgufShape(
            **{name: fields[name] for name in DIMENSIONS}, exact=fields["kind"] == EXACT
        ),
        replaced=fields["replaced"],
        copy=copy,
    )


def _check_options(config: RunOptions, pipelines: Sequence[Pipeline]) -> None:
    """Raise UsageError for options that a GGUF file excludes, MissingPackage without the packages
    that it needs."""
    engine = config.groups.engine.engine
    half = f"the language half of {config.model} is a GGUF file"
    for excluded, why, hint in (
        (not gguf_engine(engine), f"--engine {engine}: {half}", "Leave it out, or --language-gguf"),
        (
            needs_weights(pipelines),
            f"{half}, which cannot be trained or exported",
            "Leave out --language-gguf",
        ),
        (
            config.groups.adapter.adapter,
            f"--adapter: {half}",
            "Merge it first with PEFT, and convert the merged checkpoint",
        ),
    ):
        if excluded:
            raise UsageError(why, hint=hint)
    require_extra("gguf", "--language-gguf")


def _check_checkpoint(config: RunOptions, profile: ModelProfile, path: Path) -> None:
    """Raise UsageError for a checkpoint that takes no GGUF file, or if there is no file."""
    why = ""
    if profile.route in ("dual", "joint"):
        why = f"{profile.class_name} has no language half that could be replaced"
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
