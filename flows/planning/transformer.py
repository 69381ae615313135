"""Describes one transformer of a checkpoint from tensor shapes and `config.json`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from flows.planning.stacks import Attention, Mlp, Stack, attention_of, mlp_of
from stages.models.hub.headers import Header

LAYERS = ("num_hidden_layers", "depth", "num_layers", "n_layer", "n_layers", "layers")
HEADS = ("num_attention_heads", "num_heads", "n_head", "n_heads", "attention_heads")
POSITIONS = "pos"
"""Word in the names of position embedding tables."""
PLAIN = ("gelu", "relu", "silu", "gelu_pytorch_tanh")
"""Activation functions that are computed in one step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Transformer:
    """A stack of identical layers with the modules around it."""

    path: str
    """Module path of its layers."""
    kind: Literal["vision", "text", "other"]
    layers: int
    linear_parameters: int
    """Matrix parameters of one layer, to which int8, nf4 and LoRA apply."""
    matrices: tuple[tuple[int, int], ...]
    """Rows and columns of the matrices of one layer."""
    parameters: int
    """Parameters of the layers and the modules around them."""
    attention: Attention
    mlp: Mlp
    heads: int
    width: int
    shifts: bool
    """Whether its norms have a bias."""
    mixed: bool = False
    """Whether its layers are a mixture of experts."""
    plain: bool = False
    """Whether its activation function is computed in one step, by `config.json`."""
    patch: int = 0
    """Side of a patch in pixels; 0: no pixel input."""
    positions: int = 0
    """Tokens per image in the encoder; 0: depends on the image size."""
    image_size: int = 0
    """Side of an image in pixels; 0: any size."""
    merge: int = 1
    """Encoder tokens merged into one language token, along one side."""
    added: int = 0
    """Tokens added around those of an image."""

    def tokens_of(self, edge: int) -> int:
        """Return the encoder tokens of a square image with a side of `edge` pixels."""
        return self.positions or max(1, edge // max(1, self.patch)) ** 2

    def handed_over(self, edge: int) -> int:
        """Return the prompt tokens of a square image with a side of `edge` pixels."""
        grid = math.isqrt(self.tokens_of(edge))  # without the class token
        return (grid // self.merge) ** 2 + self.added


def read_transformer(
    config: dict[str, Any], stack: Stack, own: Sequence[Header], is_text: bool
) -> Transformer:
    section, sees = _config_section(config, stack)
    pixels = next((h for h in own if len(h.shape) in (4, 5) and h.shape[1] in (1, 3)), None)
    table = next(
        (h for h in own if POSITIONS in h.name and len(h.shape) == 2 and not is_text), None
    )
    attention = attention_of(stack)
    heads = next((int(section[key]) for key in HEADS if key in section), 0)
    merges = [h.shape[-1] for h in own if len(h.shape) == 4 and h is not pixels]
    return Transformer(
        path=stack.path,
        kind="text" if is_text else ("vision" if sees or pixels is not None else "other"),
        layers=stack.layers,
        linear_parameters=sum(rows * columns for rows, columns in stack.matrices.values()),
        matrices=tuple(stack.matrices.values()),
        parameters=sum(math.prod(header.shape) for header in own),
        attention=attention,
        mlp=mlp_of(stack),
        heads=heads or max(1, attention.query_width // 64),
        width=stack.width,
        shifts=stack.shifts,
        mixed=stack.mixed,
        plain=section.get("hidden_act") in PLAIN,
        patch=pixels.shape[-1] if pixels is not None else _side(section.get("patch_size")),
        positions=table.shape[0] if table is not None else 0,
        image_size=_side(section.get("image_size")),
        merge=int(section.get("spatial_merge_size", 0) or (merges[0] if merges else 1)),
        added=sum(len(h.shape) == 3 and h.shape[:2] == (1, 1) for h in own),
    )


def _side(section: Any) -> int:
    """Return the first side of a size given as one number or two."""
    first = section[0] if isinstance(section, list) and section else section
    return first if isinstance(first, int) else 0


def _config_section(config: dict[str, Any], stack: Stack) -> tuple[dict[str, Any], bool]:
    """Return the section of a configuration with the stack's number of layers and width, and
    whether it is about vision. Of several, prefer one that agrees with the stack's path."""
    parts = [(config, False)]
    for part, sees in parts:
        for name, value in part.items():
            if isinstance(value, dict):
                parts.append((value, sees or name.startswith("vis")))
    fitting = [
        (part, sees)
        for part, sees in parts
        if stack.width in part.values()
        and next((part[key] for key in LAYERS if key in part), None) == stack.layers
    ]
    seen = "vis" in stack.path
    return max(fitting, key=lambda found: found[1] == seen, default=({}, False))
