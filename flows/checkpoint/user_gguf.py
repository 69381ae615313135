"""Finds the GGUF file that a user gives beside a checkpoint, and has it compared with the
checkpoint. Imports no model library.
"""

from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

from artifacts.errors import UsageError
from artifacts.keys import digest_of
from artifacts.packs import Record, RecordSet
from artifacts.paths import folder_named
from flows.checkpoint.gguf import GgufUse, check_options, gguf_use
from flows.checkpoint.profile_loading import Describer
from flows.options.commands import RunOptions
from flows.options.model import GgufOptions
from flows.pipelines import Pipeline
from stages.models.gguf import MANIFEST, PACKAGES
from stages.models.hub.checkpoint import Checkpoint
from stages.models.profile import ModelProfile

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
