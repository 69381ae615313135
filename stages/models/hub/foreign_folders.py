"""Names what a folder holds that is no checkpoint of transformers, by the names of its files."""

import fnmatch
from collections.abc import Iterable, Mapping

from artifacts.errors import UsageError
from stages.models.hub.errors import PICKLES, to_convert

SAME = "Give the same model in transformers' layout, with config.json and model.safetensors"
ADAPTER = "Give the base model with --model, and this one with --adapter"
GGUF = "Give the checkpoint that they were made of, with the file as --language-gguf: docs/gguf.md"
ONNX = "Give the checkpoint that they were made of; `penstock export --to onnx` makes graphs"
AGAIN = "Download the checkpoint again, with its index"
LAYOUTS: Mapping[str, tuple[str, str]] = {
    "adapter_config.json": ("an adapter and not its base model", ADAPTER),
    "open_clip_config.json": ("a checkpoint in open_clip's layout", SAME),
    "model_index.json": ("a pipeline of diffusers, which reads no pictures", "See docs/models.md"),
    "modules.json": (
        "a model of sentence-transformers",
        "Give the folder in it, such as 0_CLIPModel",
    ),
    "consolidated*": ("the files of its authors' own program", SAME),
}
"""Pattern of a file → the layout of another program that it shows, and what to give instead."""
WEIGHTS: dict[str, tuple[str, str]] = {
    "*.gguf": ("GGUF files", GGUF),
    "*.onnx": ("ONNX graphs", ONNX),
    "*.h5": ("weights of TensorFlow", SAME),
    "*.msgpack": ("weights of Flax", SAME),
}
"""The same of weights, which are named if there are no pickles either."""
NO_WEIGHTS = ("training_args.bin", "optimizer.*", "scheduler.pt", "rng_state*")
"""Patterns of pickles that trainers leave beside weights."""


def without_weights(name: str, files: Iterable[str], source: str = "") -> UsageError:
    """Return the error for a model called `name` that has no safetensors, from the names of its
    `files`, in folders too. `source` is what converts pickles; empty: they are on the hub."""
    names = [file for file in sorted(files) if not _fits(file, *NO_WEIGHTS)]
    pickles = [file for file in names if file.endswith(PICKLES)]
    layout = foreign(names, LAYOUTS)
    if pickles and layout is None and not fnmatch.filter(names, "*.safetensors"):
        convert = to_convert(source or "FOLDER")
        return UsageError(
            f"{name} has its weights only as pickles ({pickles[0]}), which can run code",
            hint="Use one saved as safetensors, or "
            + (convert if source else f"download it into a folder and {convert}"),
        )
    shards = {"*.safetensors": ("weights, but no model.safetensors.index.json", AGAIN)}
    if form := layout or foreign(names, shards | WEIGHTS):
        return UsageError(f"{name} holds {form[0]}", hint=form[1])
    return UsageError(
        f"{name} holds no model with weights (*.safetensors)",
        hint="Choose a checkpoint saved by transformers, with model.safetensors",
    )


def foreign(
    files: Iterable[str], forms: Mapping[str, tuple[str, str]] = {**LAYOUTS, **WEIGHTS}
) -> tuple[str, str] | None:
    """Return what `files` hold that is no checkpoint, and what to give instead; None: nothing."""
    names = [*files]
    shown = (form for pattern, form in forms.items() if any(_fits(n, pattern) for n in names))
    return next(shown, None)


def _fits(file: str, *patterns: str) -> bool:
    return any(fnmatch.fnmatch(file.rpartition("/")[2], pattern) for pattern in patterns)
