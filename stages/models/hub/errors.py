"""Turns errors of a model hub or the network into plain messages."""

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from artifacts.errors import EnvironmentFault, PenstockError, Unanswered, UsageError
from stages.models.hub.checkpoint import Checkpoint, WeightFile

OF_THE_DISK = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
)
"""Errors of writing the cache; all other download errors come from the network."""
PICKLES = (".bin", ".pt", ".pth")
"""File name endings of weights that can run code when they are read in the usual way."""
MORE_ROOM = "Free some space, or set HF_HOME to a folder on a larger disk"


@contextlib.contextmanager
def hub_errors(name: str, revision: str | None, begun: bool = False) -> Iterator[None]:
    """Turn errors of the hub's client about a model into a PenstockError. `begun`: part of the
    model is already local."""
    from httpx2 import HTTPError, InvalidURL
    from huggingface_hub.errors import RevisionResolutionError, SafetensorsParsingError

    try:
        yield
    except SafetensorsParsingError as error:
        raise UsageError(
            f"{name} holds an invalid safetensors file: {' '.join(str(error).split())[:160]}",
            hint="Choose another revision, or a checkpoint saved by transformers",
        ) from error
    # The hub's storage of large files reports its errors as RuntimeError.
    except (
        OSError,
        ValueError,
        RuntimeError,
        HTTPError,
        InvalidURL,
        RevisionResolutionError,
    ) as error:
        raise _readable_fault(name, revision, error, begun) from error


def cache_folder() -> Path:
    """Return the folder where the hub's client keeps its downloads."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser().resolve()


def size_of(count: int) -> str:
    """Format a number of bytes as `3.4 MB` or `1.2 GB`."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(count / 1e6, 0.1):.1f} MB"


def shown(folder: Path) -> str:
    """Format a folder's path, with `~` for the home folder."""
    home = os.path.expanduser("~")  # itself for a user without a home
    return f"~/{folder.relative_to(home)}" if folder.is_relative_to(home) else str(folder)


def refuse_offline(checkpoint: Checkpoint, missing: Sequence[WeightFile]) -> None:
    """Refuse a download if the user keeps the hub's client offline. Raises Unanswered, which
    names what is missing and its size."""
    from huggingface_hub import constants

    if not constants.is_offline_mode():
        return
    more = f" and {len(missing) - 1} more files" if len(missing) > 1 else ""
    size = size_of(sum(file.size for file in missing))
    raise Unanswered(
        f"{missing[0].name}{more} of {checkpoint.name}, {size}, are not in {shown(cache_folder())} "
        f"and {_offline_switch()} is set",
        hint=f"Unset {_offline_switch()} and run the same command again, or try --model demo",
    )


def not_a_folder(path: Path) -> UsageError:
    hint = "Give the folder that holds it, with its config.json"
    if path.suffix in PICKLES:
        hint = to_convert(str(path)).replace("run", "Run", 1)
    return UsageError(f"{path} is a file, but a model is a folder", hint=hint)


def to_convert(source: str) -> str:
    """Return the hint for converting pickles; the user chooses the folder."""
    return f"run: penstock convert {source} DST, and give DST as the model"


def _readable_fault(
    name: str, revision: str | None, error: Exception, begun: bool
) -> PenstockError:
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
        RevisionResolutionError,
    )

    # The client's error about a missing cache entry hides the cause.
    if isinstance(error, (LocalEntryNotFoundError, RevisionResolutionError)):
        cause = error.__cause__
        error = cause if isinstance(cause, Exception) else error
    if isinstance(error, GatedRepoError):
        return UsageError(
            f"{name} may only be downloaded by users who accepted its terms",
            hint=f"Accept them at https://huggingface.co/{name}, then run: hf auth login",
        )
    if isinstance(error, (RepositoryNotFoundError, RevisionNotFoundError)):
        requested = f"{name} at revision {revision}" if revision else name
        return UsageError(
            f"the hub has no model {requested}",
            hint="Check the name, or run: hf auth login, if the model is private",
        )
    if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
        return UsageError(
            f"the hub denies access to {name}",
            hint="Run: hf auth login, with a token that may read it, or unset HF_TOKEN",
        )
    if isinstance(error, OSError) and error.errno in OF_THE_DISK:
        return EnvironmentFault(
            f"{name} cannot be written into {shown(cache_folder())} ({error.strerror})",
            hint=MORE_ROOM,
        )
    return _unreachable(name, error, begun)


def _unreachable(name: str, error: Exception, begun: bool) -> Unanswered:
    """Return the error for files that are missing and cannot be downloaded now."""
    from huggingface_hub import constants
    from huggingface_hub.errors import FileMetadataError, HfHubHTTPError

    reason = f"{constants.ENDPOINT} cannot be reached"
    if constants.is_offline_mode():
        reason = f"{_offline_switch()} is set"
    elif isinstance(error, HfHubHTTPError):
        reason = f"{constants.ENDPOINT} answers with status {error.response.status_code}"
    elif isinstance(error, (ValueError, FileMetadataError)):
        reason = f"{constants.ENDPOINT} does not answer as a model hub"
    elif isinstance(error, (OSError, RuntimeError)):
        reason = "its download was interrupted"
    if begun:
        return Unanswered(
            f"the rest of {name} is missing, and {reason}",
            hint="Connect and try again: it resumes the download",
        )
    connect = f"Unset {_offline_switch()}" if constants.is_offline_mode() else "Connect"
    return Unanswered(
        f"{name} was not downloaded before, and {reason}",
        hint=f"{connect} and try again, give the folder of a copy as --model, or "
        "try the program with --model demo. docs/cards.md plans common models for GPUs",
    )


def _offline_switch() -> str:
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return next((name for name in names if os.environ.get(name)), names[0])
