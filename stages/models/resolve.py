"""Turns a model's name into a local folder; imports neither torch nor transformers."""

import errno
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from artifacts.errors import EnvironmentFault, PenstockError, UsageError

WANTED = ("*.json", "*.jinja", "*.txt", "*.model", "*.safetensors", "*.py", "tokenizer*")
"""Files of a hub repository that a run can use; pickled and converted weights are left there."""
OF_THE_DISK = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
)
"""Errors of writing the cache; all others that a download ends with come from the network."""
MORE_ROOM = "Free some space, or set HF_HOME to a folder on a larger disk"

Announce = Callable[[str], None]
"""Takes a line for the user."""


def resolve_model(
    name: str | Path, revision: str | None = None, announce: Announce | None = None
) -> Path:
    """The folder of a model given as a folder or a hub id, downloaded if it is not there yet.

    `announce` is told what is going to be downloaded before that starts, and nothing else.
    Raises UsageError for what is no model, EnvironmentFault when the hub cannot be reached or the
    disk cannot take the download.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UsageError(
                f"{folder} holds no config.json, so it is not a model",
                hint="Give the folder that save_pretrained or a download made, or a hub id",
            )
        return folder.absolute()
    if not _is_hub_id(str(name)):
        raise UsageError(
            f"there is no model at {name}",
            hint="Give a folder with a config.json, a hub id such as owner/name, or demo",
        )
    return _cached(str(name), revision) or _download(str(name), revision, announce)


def _is_hub_id(name: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _cached(name: str, revision: str | None) -> Path | None:
    """The folder of an earlier download that was finished."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        found = snapshot_download(
            name, revision=revision, allow_patterns=list(WANTED), local_files_only=True
        )
    except LocalEntryNotFoundError:
        return None
    return Path(found) if is_complete(Path(found)) else None


def _download(name: str, revision: str | None, announce: Announce | None) -> Path:
    from httpx2 import HTTPError, InvalidURL
    from huggingface_hub import HfApi, snapshot_download

    patterns = list(WANTED)
    try:
        files = snapshot_download(
            name, revision=revision, allow_patterns=patterns, tqdm_class=_bars(False), dry_run=True
        )
        weights = {"model.safetensors", "model.safetensors.index.json"}
        names = {file.filename for file in files}
        if "config.json" not in names or not weights & names:
            raise _without_safetensors(name, HfApi().list_repo_files(name, revision=revision))
        missing = [file.file_size or 0 for file in files if file.will_download]
        _check_space(name, sum(missing))
        if missing and announce is not None:
            announce(f"downloading {name}, {_size(sum(missing))}, into {_shown(_cache())} (once)")
        folder = Path(
            snapshot_download(
                name, revision=revision, allow_patterns=patterns, tqdm_class=_bars(True)
            )
        )
        # Without a network the hub's client answers with what it has, be it half a model.
        if not is_complete(folder):
            raise _without_safetensors(name, HfApi().list_repo_files(name, revision=revision))
        return folder
    # The storage that the hub keeps large files in reports its troubles as RuntimeError.
    except (OSError, ValueError, RuntimeError, HTTPError, InvalidURL) as error:
        raise _in_plain_words(name, revision, error) from error


def _bars(shown: bool) -> Any:
    """A class of progress bars for the hub's client, whose own draw into logs too."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            # None leaves it to whether there is a terminal.
            options["disable"] = None if shown else True
            super().__init__(*args, **options)  # type: ignore[no-untyped-call]

    return Bar


def _cache() -> Path:
    """Where the hub's client keeps what it downloads."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser().absolute()


def _check_space(name: str, needed: int) -> None:
    """A disk that fills up during the download would do so after minutes, or hours."""
    folder = _cache()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise EnvironmentFault(
            f"{name} needs {_size(needed)} in {_shown(folder)}, where {_size(free)} are free",
            hint=MORE_ROOM,
        )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(count / 1e6, 0.1):.1f} MB"


def _shown(folder: Path) -> str:
    home = Path.home()
    return f"~/{folder.relative_to(home)}" if folder.is_relative_to(home) else str(folder)


def _without_safetensors(name: str, files: Sequence[str]) -> UsageError:
    pickles = sorted(file for file in files if file.endswith((".bin", ".pt", ".pth")))
    if pickles:
        return UsageError(
            f"{name} has its weights only as pickles ({pickles[0]}), which can run code",
            hint="Use one saved as safetensors, or download it and give the folder",
        )
    return UsageError(
        f"{name} holds no model with weights (*.safetensors)",
        hint="Choose a checkpoint saved by transformers, such as one of SmolVLM2",
    )


def _in_plain_words(name: str, revision: str | None, error: Exception) -> PenstockError:
    """What a failed download means for the one who asked for it."""
    from huggingface_hub.errors import (
        DryRunError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # The client's own word for having nothing to fall back on hides what went wrong.
    if isinstance(error, (DryRunError, LocalEntryNotFoundError)):
        found = error.__cause__
        error = found if isinstance(found, Exception) else error
    if isinstance(error, GatedRepoError):
        return UsageError(
            f"{name} may only be downloaded by those who accepted its terms",
            hint=f"Accept them at https://huggingface.co/{name}, then run: hf auth login",
        )
    if isinstance(error, (RepositoryNotFoundError, RevisionNotFoundError)):
        asked = f"{name} at revision {revision}" if revision else name
        return UsageError(
            f"the hub knows no model {asked}",
            hint="Check the name, or run: hf auth login, if the model is private",
        )
    if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
        return UsageError(
            f"the hub refuses to give {name} to you",
            hint="Run: hf auth login, with a token that may read it, or unset HF_TOKEN",
        )
    if isinstance(error, OSError) and error.errno in OF_THE_DISK:
        return EnvironmentFault(
            f"{name} cannot be written into {_shown(_cache())} ({error.strerror})", hint=MORE_ROOM
        )
    return _unreachable(name, error)


def _unreachable(name: str, error: Exception) -> EnvironmentFault:
    """The model was not downloaded before and cannot be now."""
    from huggingface_hub import constants
    from huggingface_hub.errors import FileMetadataError, HfHubHTTPError

    reason = f"{constants.ENDPOINT} cannot be reached"
    if constants.is_offline_mode():
        names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
        reason = f"{next((n for n in names if os.environ.get(n)), names[0])} is set"
    elif isinstance(error, HfHubHTTPError):
        reason = f"{constants.ENDPOINT} answers with status {error.response.status_code}"
    elif isinstance(error, (ValueError, FileMetadataError)):
        reason = f"{constants.ENDPOINT} does not answer as a hub does"
    elif isinstance(error, (OSError, RuntimeError)):
        reason = "its download broke off"
    return EnvironmentFault(
        f"{name} was not downloaded before, and {reason}",
        hint="Connect and run the same command again, or try the program with --model demo",
    )


def is_complete(folder: Path) -> bool:
    """Whether a snapshot holds its configuration and all weight files that its index names."""
    import json

    if not (folder / "config.json").exists():
        return False
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return (folder / "model.safetensors").exists()
    return all(
        (folder / name).exists()
        for name in set(json.loads(index.read_text())["weight_map"].values())
    )
