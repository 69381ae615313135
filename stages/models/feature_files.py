"""Writes and reads features as files of their own, for programs that run the halves themselves.
Knows neither stores nor families."""

from pathlib import Path

from artifacts.errors import UsageError
from artifacts.tensor_files import read_tree, write_tree
from stages.models.halves.features import Features


def save_features(path: str | Path, features: Features) -> None:
    """Write what `encode` gave to a safetensors file, with all that `generate` needs of it. Raises
    EnvironmentFault when that cannot be written, UsageError for anything else than features."""
    if not isinstance(features, Features):
        raise UsageError(
            f"a {type(features).__name__} does not say what decoding needs besides features",
            hint="Save what encode gave, as it gave it",
        )
    write_tree(path, features.to_tree())


def load_features(path: str | Path) -> Features:
    """Read the features that `save_features` wrote, onto the CPU. Raises UsageError for a file of
    anything else, EnvironmentFault for one that is damaged or holds a record that the installed
    transformers does not have."""
    tree = read_tree(path)
    try:
        return Features.from_tree(tree)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"{path} holds something else than features",
            hint="Give a file that save_features wrote",
        ) from error
