"""Turns a model's name into a local folder; imports neither torch nor transformers."""

import os
from pathlib import Path

from artifacts.errors import EnvironmentFault, UsageError

WANTED = ("*.json", "*.jinja", "*.txt", "*.model", "*.safetensors", "*.py", "tokenizer*")
"""Files of a hub repository that a run can use; pickled and converted weights are left there."""


def resolve_model(name: str | Path, revision: str | None = None) -> Path:
    """The folder of a model given as a folder or a hub id, downloaded if it is not there yet.

    Raises UsageError for what is no model, EnvironmentFault when the hub cannot be reached.
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
    return _from_hub(str(name), revision)


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


def _from_hub(name: str, revision: str | None) -> Path:
    from httpx import HTTPError
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    patterns = list(WANTED)
    try:
        cached = Path(
            snapshot_download(
                name, revision=revision, allow_patterns=patterns, local_files_only=True
            )
        )
        if is_complete(cached):
            return cached
    except LocalEntryNotFoundError:
        pass
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
        # Without a network the hub's client answers with what it has, be it half a model.
        if not is_complete(folder):
            files = HfApi().list_repo_files(name, revision=revision)
            raise _without_safetensors(name, files)
        return folder
    except GatedRepoError as error:
        raise UsageError(
            f"{name} may only be downloaded by those who accepted its terms",
            hint=f"Accept them at https://huggingface.co/{name}, then run: hf auth login",
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        asked = f"{name} at revision {revision}" if revision else name
        raise UsageError(
            f"the hub knows no model {asked}",
            hint="Check the name, or run: hf auth login, if the model is private",
        ) from error
    except (OSError, ValueError, HTTPError) as error:
        raise unreachable(name) from error


def _without_safetensors(name: str, files: list[str]) -> UsageError:
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


def unreachable(name: str) -> EnvironmentFault:
    """The hub does not answer, and the model was not downloaded before."""
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
    reason = "HF_HUB_OFFLINE is set" if offline else f"{address} cannot be reached"
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
