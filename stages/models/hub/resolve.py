"""Turns a model's name into a local folder; imports neither torch nor transformers."""

from pathlib import Path

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.regular import odd_thing
from stages.models.hub.checkpoint import Checkpoint
from stages.models.hub.faults import not_a_folder
from stages.models.hub.fetching import fetch
from stages.models.hub.originals import refuse_original
from stages.models.hub.repository import bring_small, cached, hub_id_of, is_hub_id
from stages.models.hub.transfer import Announce


def resolve_model(
    name: str | Path, revision: str | None = None, announce: Announce | None = None
) -> Path:
    """Return the folder of a model with all its weights, downloaded if they are not there yet. The
    model is given as a folder or a hub id. What is raised and announced is what `find_model` and
    `fetch` do."""
    found = find_model(name, revision, announce)
    fetch(found, announce=announce)
    return found.folder


def find_model(
    name: str | Path, revision: str | None = None, announce: Announce | None = None
) -> Checkpoint:
    """Find a model with all its small files, downloaded if they are not there yet, and no weights.
    The model is given as a folder or a hub id.

    `announce` is told what is going to be downloaded before that starts, and nothing else. Raises
    UsageError for what is no model, EnvironmentFault when the hub cannot be reached or the disk
    cannot take the download.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        refuse_odd_things(folder)
        if not (folder / "config.json").is_file():
            raise UsageError(
                f"{folder} holds no config.json, so it is not a model",
                hint="Give the folder that save_pretrained or a download made, or a hub id",
            )
        refuse_revision(f"{folder}, a folder,", revision)
        refuse_original(str(folder), folder)
        return Checkpoint(name=str(name), folder=folder.absolute())
    if folder.is_file():
        raise not_a_folder(folder)
    if not is_hub_id(str(name)):
        raise UsageError(
            f"there is no model at {name}",
            hint="Give a folder with a config.json, or a hub id such as owner/name. Commands also "
            "take demo, whose folder is penstock_demo.CHECKPOINT",
        )
    found = cached(str(name), revision) or bring_small(str(name), revision, announce)
    refuse_original(found.name, found.folder)
    return found


def refuse_odd_things(folder: Path) -> None:
    """Refuse a model's folder that holds what is neither file nor folder. Whoever opens it might
    wait for ever. Raises EnvironmentFault."""
    templates = folder / "additional_chat_templates"
    try:
        held = sorted([*folder.iterdir(), *(templates.iterdir() if templates.is_dir() else ())])
    except OSError as error:
        raise EnvironmentFault(
            f"{error.filename} of the model cannot be read ({error.strerror})",
            hint="Check the folder, or fetch the model again",
        ) from error
    for path in held:
        if odd := odd_thing(path):
            raise EnvironmentFault(
                f"{path} of the model is {odd}, not a file", hint="Remove it from the folder"
            )


def fetch_rest(folder: Path) -> bool:
    """Bring all weights of a hub's snapshot here; False when there is nothing to bring. Raises what
    `fetch` does."""
    name = hub_id_of(folder)
    found = cached(name, folder.name) if name else None
    if found is None or not found.missing():
        return False
    fetch(found)
    return True


def refuse_revision(what: str, revision: str | None) -> None:
    """Refuse a revision that is asked of what has none. Raises UsageError."""
    if revision is not None:
        raise UsageError(
            f"--revision {revision} is given, and {what} has no revisions",
            hint="Leave --revision out, or give a hub id such as owner/name",
        )
