"""Resolves a model's name to a local folder. Imports neither torch nor transformers."""

import json
from functools import partial
from pathlib import Path
from typing import Any

from artifacts.disk.paths import is_utf8
from artifacts.disk.regular_files import odd_thing
from artifacts.errors import EnvironmentFault, UsageError
from artifacts.records.model_files import ALONG
from stages.models.hub.checkpoint import (
    INDEX,
    SINGLE,
    SMALL,
    TEMPLATES,
    Checkpoint,
    WeightFile,
    is_complete,
    refuse_impossible,
    refuse_original,
    weight_names,
)
from stages.models.hub.errors import cache_folder, hub_errors, not_a_folder, shown, size_of
from stages.models.hub.fetch import check_space, fetch
from stages.models.hub.folder_files import refuse_damaged
from stages.models.hub.foreign_folders import ADAPTER, foreign, without_weights
from stages.models.hub.quantized import refuse_unread
from stages.models.hub.transfer import Announce

PREFIX = "models--"
"""Prefix of model folders in the hub's cache."""

Listing = dict[str, tuple[int, str]]
"""Path in the repository → bytes, and the SHA-256 of a large file, else empty."""


def is_hub_id(name: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def cached(name: str, revision: str | None) -> Checkpoint | None:
    """Return a model whose small files are all local, or None. Uses no network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(
                name, revision=revision, allow_patterns=list(SMALL), local_files_only=True
            )
        )
    except LocalEntryNotFoundError:
        return None
    if not (folder / "config.json").exists():
        return None
    listing = _listing_here(folder)
    if listing is None:  # a snapshot of another version of the hub's client
        checkpoint = Checkpoint(name=name, folder=folder, commit=folder.name)
        return checkpoint if is_complete(folder) else None
    checkpoint = _checkpoint(name, folder, listing)
    return checkpoint if all(file.digest for file in checkpoint.missing()) else None


def download_bytes(name: str, seconds: float) -> int:
    """Return the size of the files of a hub id that are not on this machine, in bytes. Nothing is
    downloaded. If a request to the hub is needed, it takes at most `seconds`. Raises UsageError
    for a model that the hub does not provide, EnvironmentFault if the hub is unreachable."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils._paths import filter_repo_objects

    if (checkpoint := cached(name, None)) is not None:
        return sum(file.size for file in checkpoint.missing())
    with hub_errors(name, None):
        info = HfApi().model_info(name, files_metadata=True, timeout=seconds)
    sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or ()}
    wanted = {*filter_repo_objects(sizes, allow_patterns=[*SMALL, *ALONG])}
    return sum(size for file, size in sizes.items() if file in wanted or _is_weight(file))


def bring_small(name: str, revision: str | None, announce: Announce | None) -> Checkpoint:
    """Download a model's small files, after calling `announce`. Raises UsageError for a model that
    the hub does not provide, EnvironmentFault if the hub is unreachable."""
    from huggingface_hub import HfApi, hf_hub_download, hf_hub_url, snapshot_download
    from huggingface_hub.utils._paths import filter_repo_objects
    from huggingface_hub.utils.tqdm import tqdm

    with hub_errors(name, revision):
        api = HfApi()
        resolved = api.resolve_revision(name, revision=revision)
        listing = _ask_listing(api, name, resolved.resolved)
        if "config.json" not in listing or not {SINGLE, INDEX} & listing.keys():
            if "config.json" in listing:
                config = hf_hub_download(name, "config.json", revision=resolved.resolved)
                refuse_original(name, Path(config).parent)
            raise without_weights(name, listing)
        # The hub may list the files of a model that may not be downloaded.
        api.get_hf_file_metadata(url=hf_hub_url(name, "config.json", revision=resolved.resolved))
        in_git = [n for n, (_, digest) in listing.items() if _is_weight(n) and not digest]
        small = [*filter_repo_objects(listing, allow_patterns=[*SMALL, *ALONG, *in_git])]
        repository = cache_folder() / f"{PREFIX}{name.replace('/', '--')}"
        folder = repository / "snapshots" / resolved.resolved
        absent = {file: listing[file] for file in small if not (folder / file).exists()}
        _announce_small(name, sum(size for size, _ in absent.values()), announce)
        silent: Any = partial(tqdm, disable=True)  # bars also go to logs
        snapshot_download(
            name,
            revision=resolved,
            allow_patterns=[file for file in small if not listing[file][1]],
            tqdm_class=silent,
        )
    # Large files, such as a tokenizer's, are checked against the hub's checksum.
    large = tuple(
        WeightFile(name=file, size=size, digest=digest)
        for file, (size, digest) in absent.items()
        if digest
    )
    fetch(Checkpoint(name=name, folder=folder, commit=folder.name, weights=large))
    return _checkpoint(name, folder, listing)


def hub_id_of(folder: Path) -> str:
    """Return the hub id of a snapshot in the hub's cache; empty for any other folder."""
    home = folder.parents[1] if folder.parent.name == "snapshots" else cache_folder()
    ours = home.parent == cache_folder() and home.name.startswith(PREFIX)
    return home.name.removeprefix(PREFIX).replace("--", "/") if ours else ""


def _ask_listing(api: Any, name: str, commit: str) -> Listing:
    listing: Listing = {}
    for entry in api.list_repo_tree(name, recursive=True, revision=commit):
        if hasattr(entry, "blob_id"):  # files have one, folders do not
            listing[entry.path] = (entry.size, entry.lfs.sha256 if entry.lfs else "")
    return listing


def _listing_here(snapshot: Path) -> Listing | None:
    """Return the listing that the hub's client keeps beside a snapshot. Its own reader omits the
    checksums."""
    path = snapshot.parents[1] / "trees" / f"{snapshot.name}.json"
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        return {n: (entry["size"], entry.get("lfs_sha256") or "") for n, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _checkpoint(name: str, folder: Path, listing: Listing) -> Checkpoint:
    weights = []
    for file in weight_names(folder):
        if file not in listing:
            raise UsageError(
                f"{name} lacks {file}, which its weight index names",
                hint="Choose another revision, or ask its author to upload it",
            )
        size, digest = listing[file]
        weights.append(WeightFile(name=file, size=size, digest=digest))
    return Checkpoint(name=name, folder=folder, commit=folder.name, weights=tuple(weights))


def _announce_small(name: str, needed: int, announce: Announce | None) -> None:
    check_space(name, needed)
    if needed and announce is not None:
        into = shown(cache_folder())
        announce(
            f"downloading the files that describe {name}, {size_of(needed)}, into {into} (once)"
        )


def _is_weight(path: str) -> bool:
    return path.endswith(".safetensors") and "/" not in path


def resolve_model(
    name: str | Path, revision: str | None = None, announce: Announce | None = None
) -> Path:
    """Return the folder of a model with all its weights, downloading missing ones. The model is
    given as a folder or a hub id. Raises and announces what `find_model` and `fetch` do."""
    checkpoint = find_model(name, revision, announce)
    fetch(checkpoint, announce=announce)
    return checkpoint.folder


def check_name(name: str | Path) -> None:
    """Raise UsageError for a name of a model that is neither a folder nor a hub id."""
    folder = Path(name).expanduser()
    if folder.is_file():
        raise not_a_folder(folder)
    if not folder.is_dir() and not is_hub_id(str(name)):
        raise UsageError(
            f"there is no model at {name}",
            hint="Give a folder with a config.json, a hub id such as owner/name, or demo",
        )


def find_model(
    name: str | Path, revision: str | None = None, announce: Announce | None = None
) -> Checkpoint:
    """Find a model with all its small files, downloading missing ones, without weights. The model
    is given as a folder or a hub id.

    `announce` is called before a download, with its description. Raises UsageError if the name is
    not a model, EnvironmentFault if the hub is unreachable or the disk is full.
    """
    check_name(name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not is_utf8(folder):
            text = f"{folder}: no model can be loaded from a folder whose path is not UTF-8"
            raise UsageError(text, hint="Rename the folder, or give a link to it")
        refuse_odd_things(folder)
        if not (folder / "config.json").is_file():
            if form := foreign(path.name for path in folder.iterdir()):
                raise UsageError(f"{folder} holds {form[0]}", hint=form[1])
            raise UsageError(
                f"{folder} holds no config.json, so it is not a model",
                hint="Give the folder that save_pretrained or a download made, or a hub id",
            )
        refuse_revision(f"{folder}, a folder,", revision)
        refuse_unusable(str(folder), folder)
        return Checkpoint(name=str(name), folder=folder.absolute())
    checkpoint = cached(str(name), revision) or bring_small(str(name), revision, announce)
    refuse_unusable(checkpoint.name, checkpoint.folder)
    return checkpoint


def refuse_unusable(name: str, folder: Path) -> None:
    """Refuse a checkpoint called `name` whose small files, in `folder`, are damaged or of a form
    that is not read. Raises UsageError, EnvironmentFault."""
    refuse_damaged(folder)
    if (folder / "adapter_config.json").exists():  # transformers would load it, too
        raise UsageError(f"{name} holds an adapter", hint=ADAPTER)
    refuse_impossible(folder)
    refuse_original(name, folder)
    refuse_unread(name, folder)


def refuse_odd_things(folder: Path) -> None:
    """Refuse a model folder with special files such as FIFOs, because opening one might block
    forever. Raises EnvironmentFault."""
    templates = folder / TEMPLATES
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
    """Download all missing weights of a hub snapshot. Return False if none are missing. Raises what
    `fetch` does."""
    name = hub_id_of(folder)
    checkpoint = cached(name, folder.name) if name else None
    if checkpoint is None or not checkpoint.missing():
        return False
    fetch(checkpoint)
    return True


def refuse_revision(what: str, revision: str | None) -> None:
    """Refuse a revision for a model without revisions. Raises UsageError."""
    if revision is not None:
        raise UsageError(
            f"--revision {revision} is given, but {what} has no revisions",
            hint="Leave --revision out, or give a hub id such as owner/name",
        )
