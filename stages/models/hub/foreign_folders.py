"""Names what a folder holds that is no checkpoint of transformers, by the names of its files."""

import fnmatch
from collections.abc import Iterable
from typing import NamedTuple

from artifacts.errors import UsageError
from stages.models.hub.transfer import PICKLES, to_convert


class ForeignForm(NamedTuple):
    """A form of files that people give as a model."""

    pattern: str
    """Pattern of the file that shows it."""
    what: str
    """What the folder holds."""
    hint: str
    """What to give instead."""


LAYOUTS = (
    ForeignForm(
        "adapter_config.json",
        "an adapter and not its base model",
        "Give the base model with --model, and this one with --adapter",
    ),
    ForeignForm(
        "open_clip_config.json",
        "a checkpoint in open_clip's layout",
        "Give the same model in transformers' layout, with a config.json and model.safetensors",
    ),
    ForeignForm(
        "model_index.json",
        "a pipeline of diffusers, which makes pictures",
        "Give a model that reads them: docs/models.md lists them",
    ),
    ForeignForm(
        "modules.json",
        "a model of sentence-transformers",
        "Give the folder in it that holds a CLIP-like model, such as 0_CLIPModel",
    ),
    ForeignForm(
        "consolidated*",
        "the files of its authors' own program",
        "Give the same model in transformers' layout, with a config.json and model.safetensors",
    ),
)
"""Layouts of other programs, which go before pickles. The first whose file is there is named."""
WEIGHTS = (
    ForeignForm(
        "*.gguf",
        "GGUF files",
        "Give the checkpoint that they were made of, and the file of its language half with "
        "--language-gguf: docs/gguf.md",
    ),
    ForeignForm(
        "*.onnx",
        "ONNX graphs",
        "Give the checkpoint that they were made of; `penstock export --to onnx` makes graphs",
    ),
    ForeignForm(
        "*.h5",
        "weights of TensorFlow",
        "Give the same model with model.safetensors",
    ),
    ForeignForm(
        "*.msgpack",
        "weights of Flax",
        "Give the same model with model.safetensors",
    ),
)
"""Forms of weights, which are named if there are no pickles either."""
NO_WEIGHTS = ("training_args.bin", "optimizer.*", "scheduler.pt", "rng_state*")
"""Patterns of pickles that trainers leave beside weights."""


def without_weights(name: str, files: Iterable[str], source: str = "FOLDER") -> UsageError:
    """Return the error for a model called `name` that has no safetensors, from the names of its
    `files`, in folders too. `source` is what a conversion of pickles would read."""
    names = [file for file in sorted(files) if not _fits(file, *NO_WEIGHTS)]
    layout, weights = (_named(forms, names) for forms in (LAYOUTS, WEIGHTS))
    pickles = [file for file in names if file.endswith(PICKLES)]
    if pickles and layout is None:
        convert = to_convert(source)
        if source == "FOLDER":
            convert = f"download it into a folder and {convert}"
        return UsageError(
            f"{name} has its weights only as pickles ({pickles[0]}), which can run code",
            hint=f"Use one saved as safetensors, or {convert}",
        )
    if form := layout or weights:
        return UsageError(f"{name} holds {form.what}", hint=form.hint)
    return UsageError(
        f"{name} holds no model with weights (*.safetensors)",
        hint="Choose a checkpoint saved by transformers, with model.safetensors",
    )


def named_layout(files: Iterable[str]) -> ForeignForm | None:
    """Return the form that a folder without config.json has, by the names of its `files`."""
    return _named((*LAYOUTS, *WEIGHTS), [*files])


def _named(forms: Iterable[ForeignForm], files: list[str]) -> ForeignForm | None:
    return next((form for form in forms if any(_fits(file, form.pattern) for file in files)), None)


def _fits(file: str, *patterns: str) -> bool:
    return any(fnmatch.fnmatch(file.rpartition("/")[2], pattern) for pattern in patterns)
