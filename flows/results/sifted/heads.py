"""Scores vectors with heads that users have, such as the aesthetic predictors of LAION."""

import itertools
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts.errors import UsageError
from artifacts.paths import folder_named

WEIGHT = re.compile(r"(?:layers\.(\d+)\.|linear\.|)weight")
"""Name of the weights of a layer: of a perceptron, or of a head with one layer."""
PICKLED = (".pth", ".pt", ".bin", ".ckpt")
CONVERSION = (
    "import torch, safetensors.torch as s; "
    "s.save_file(torch.load({!r}, 'cpu', weights_only=True), {!r})"
)
"""Program that converts a pickled head without running code of it."""
Matrix = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreHead:
    """A score of unit vectors: layers without activations between, as LAION's are."""

    name: str
    layers: tuple[tuple[Matrix, Matrix], ...]
    """Weights [out, in] and bias [out] of each."""

    @property
    def width(self) -> int:
        """Return the width of the vectors that it scores."""
        return int(self.layers[0][0].shape[1])

    def scores(self, vectors: Matrix) -> NDArray[np.float32]:
        """Return the score of each vector."""
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        values = vectors / np.maximum(lengths, 1e-12)
        for weight, bias in self.layers:
            values = values @ weight.T + bias
        found: NDArray[np.float32] = values[:, 0]
        return found


def read_head(name: str, file: str) -> ScoreHead:
    """Read a head from a safetensors file. Raises UsageError."""
    path = folder_named(file, "head")
    if path.suffix.lower() in PICKLED:
        made = str(path.with_suffix(".safetensors"))
        script = CONVERSION.format(str(path), made)
        raise UsageError(
            f"--head {name}: {path.name} is pickled and could run code",
            hint=f"Convert it: python -c {shlex.quote(script)}",
        )
    tensors = _tensors(name, path)
    named = {m: match for m in tensors if (match := WEIGHT.fullmatch(m))}
    order = sorted(named, key=lambda key: int(named[key][1] or 0))
    layers = []
    for key in order:
        weight = np.atleast_2d(tensors[key])
        bias = tensors.get(key.removesuffix("weight") + "bias")
        layers.append((weight, np.zeros(len(weight), np.float32) if bias is None else bias))
    fits = all(a[0].shape[0] == b[0].shape[1] for a, b in itertools.pairwise(layers))
    if not layers or not fits or layers[-1][0].shape[0] != 1:
        raise UsageError(
            f"--head {name}: {path.name} holds no layers that end in one score",
            hint="Its tensors are layers.0.weight, layers.0.bias, …, or linear.weight",
        )
    if not all(np.isfinite(values).all() for layer in layers for values in layer):
        raise UsageError(
            f"--head {name}: {path.name} has values that are no numbers",
            hint="Give an undamaged file",
        )
    return ScoreHead(name=name, layers=tuple(layers))


def _tensors(name: str, path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key).float().numpy() for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UsageError(
            f"--head {name}: {path} cannot be read ({error})", hint="Give a safetensors file"
        ) from error
