"""Writes and reads features as single files, for programs that run the halves themselves."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.files import whole_file
from artifacts.regular_files import open_regular
from artifacts.tensors import name_tensors, place_tensors
from stages.models.halves.features import Features

if TYPE_CHECKING:
    import torch

FORM = "1"
"""Format version, raised when the same tree would be written differently."""
MARK, TREE, SUM = "penstock", "tree", "sha256"
"""Metadata keys of a file."""
REMAKE_HINT = "Make it again from what it was made of"
_NOT_OURS = (KeyError, ValueError, TypeError, AttributeError, AssertionError, RecursionError)
"""Exceptions raised by JSON that parses but was never written by `write_tree`."""


def write_tree(path: str | Path, tree: Any) -> None:
    """Write a tree, replacing the file at the path. Raises EnvironmentFault, or UsageError for a
    value that a tree cannot hold."""
    from safetensors.torch import save

    meta, tensors = name_tensors(tree)
    own = apart(tensors)
    text = json.dumps(meta, separators=(",", ":"))
    content = save(own, {"format": "pt", MARK: FORM, TREE: text, SUM: sum_of(text, own)})
    with whole_file(Path(path)) as file:
        file.write(content)


def read_tree(path: str | Path) -> Any:
    """Return the tree that `write_tree` wrote. Raises UsageError for a file that it did not write,
    EnvironmentFault for one that cannot be read or was changed since."""
    notes, tensors = _read(Path(path))
    if notes.get(MARK) != FORM:
        raise UsageError(
            f"{path} is a safetensors file that Penstock did not write, or another version did",
            hint=REMAKE_HINT,
        )
    text = notes.get(TREE, "")
    if notes.get(SUM) != sum_of(text, tensors):
        raise _damaged(path)
    try:
        return place_tensors(json.loads(text), tensors)
    except _NOT_OURS as error:
        raise _damaged(path) from error


def _read(path: Path) -> tuple[dict[str, str], dict[str, "torch.Tensor"]]:
    from safetensors import SafetensorError, safe_open

    try:
        with open_regular(path):  # opening a FIFO would block
            pass
        # Not mapped: if the file is truncated meanwhile, a mapping would kill the process.
        with safe_open(path, "pt", backend="pread") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return dict(file.metadata() or {}), tensors
    except FileNotFoundError as error:
        raise UsageError(f"there is no file {path}", hint="Check its name") from error
    except OSError as error:
        why = error.strerror or str(error)
        raise EnvironmentFault(f"{path} cannot be read ({why})", hint=REMAKE_HINT) from error
    except SafetensorError as error:
        raise _damaged(path) from error


def apart(tensors: Mapping[str, "torch.Tensor"]) -> dict[str, "torch.Tensor"]:
    """Return the tensors on the CPU, each with its own storage, as the file format requires."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        here = tensor.detach().cpu().contiguous()
        found[name] = here.clone() if here.untyped_storage().data_ptr() in seen else here
        seen.add(here.untyped_storage().data_ptr())
    return found


def sum_of(text: str, tensors: Mapping[str, "torch.Tensor"]) -> str:
    """Return the SHA-256 of a tree's JSON and its tensors, in hex."""
    import torch

    found = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        found.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        if tensor.numel():
            found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _damaged(path: str | Path) -> EnvironmentFault:
    return EnvironmentFault(f"{path} is not a whole file that Penstock wrote", hint=REMAKE_HINT)


def save_features(path: str | Path, features: Features) -> None:
    """Write the result of `encode` to a safetensors file, with everything that `generate` needs.
    Raises EnvironmentFault if writing fails, UsageError for anything but features."""
    if not isinstance(features, Features):
        raise UsageError(
            f"a {type(features).__name__} is not a result of encode, which decoding needs",
            hint="Save the result of encode unchanged",
        )
    write_tree(path, features.to_tree())


def load_features(path: str | Path) -> Features:
    """Read the features that `save_features` wrote, onto the CPU.

    Raises UsageError for a file with other content, EnvironmentFault for a damaged file, or for a
    record type that the installed transformers lacks."""
    tree = read_tree(path)
    try:
        return Features.from_tree(tree)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"{path} does not hold features",
            hint="Give a file that save_features wrote",
        ) from error
