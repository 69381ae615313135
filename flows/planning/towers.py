"""Describes one encoder of a checkpoint, its identical layers and the modules around them, from
tensor shapes and `config.json`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from flows.planning.stacks import Attention, Mlp, Stack, attention_of, mlp_of
from stages.models.hub.headers import Header

LAYERS = ("num_hidden_layers", "depth", "num_layers", "n_layer", "n_layers", "layers")
HEADS = ("num_attention_heads", "num_heads", "n_head", "n_heads", "attention_heads")
POSITIONS = "pos"
"""Word that the name of a table of positions holds."""
PLAIN = ("gelu", "relu", "silu", "gelu_pytorch_tanh")
"""Nonlinearities that are computed in one step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tower:
    """Identical layers one after another, with the modules around them."""

    path: str
    """Path of its layers."""
    kind: Literal["vision", "text", "other"]
    layers: int
    layer_parameters: int
    linear_parameters: int
    """Parameters of one layer that stand in matrices: what int8 and nf4 take and LoRA adapts."""
    matrices: tuple[tuple[int, int], ...]
    """Rows and columns of the matrices of one layer."""
    parameters: int
    """Parameters of the layers and of what surrounds them."""
    attention: Attention
    mlp: Mlp
    heads: int
    width: int
    shifts: bool
    """Whether its norms have a bias."""
    mixed: bool = False
    """Whether its layers hold experts of which a token sees a few."""
    plain: bool = False
    """Whether its nonlinearity is told to be one step."""
    patch: int = 0
    """Pixels of a patch's side; 0 for what sees no pixels."""
    positions: int = 0
    """Tokens of one image inside the tower; 0 where they follow from the image's size."""
    image_size: int = 0
    """Pixels of an image's side; 0 where any goes."""
    merge: int = 1
    """Number of its tokens that become one of the language half's, along one side."""
    added: int = 0
    """Tokens put around those of an image."""

    def tokens_of(self, edge: int) -> int:
        """Return the tokens inside the tower for a square image of so many pixels a side."""
        return self.positions or max(1, edge // max(1, self.patch)) ** 2

    def handed_over(self, edge: int) -> int:
        """Return the tokens of such an image in a prompt."""
        grid = math.isqrt(self.tokens_of(edge))  # without the class token
        return (grid // self.merge) ** 2 + self.added


def tower_of(config: dict[str, Any], stack: Stack, mine: Sequence[Header], is_text: bool) -> Tower:
    told, sees = _told(config, stack)
    pixels = next((h for h in mine if len(h.shape) in (4, 5) and h.shape[1] in (1, 3)), None)
    table = next(
        (h for h in mine if POSITIONS in h.name and len(h.shape) == 2 and not is_text), None
    )
    attention = attention_of(stack)
    heads = next((int(told[key]) for key in HEADS if key in told), 0)
    merges = [h.shape[-1] for h in mine if len(h.shape) == 4 and h is not pixels]
    return Tower(
        path=stack.path,
        kind="text" if is_text else ("vision" if sees or pixels is not None else "other"),
        layers=stack.layers,
        layer_parameters=stack.parameters,
        linear_parameters=sum(rows * columns for rows, columns in stack.matrices.values()),
        matrices=tuple(stack.matrices.values()),
        parameters=sum(math.prod(header.shape) for header in mine),
        attention=attention,
        mlp=mlp_of(stack),
        heads=heads or max(1, attention.query_width // 64),
        width=stack.width,
        shifts=stack.shifts,
        mixed=stack.mixed,
        plain=told.get("hidden_act") in PLAIN,
        patch=pixels.shape[-1] if pixels is not None else _side(told.get("patch_size")),
        positions=table.shape[0] if table is not None else 0,
        image_size=_side(told.get("image_size")),
        merge=int(told.get("spatial_merge_size", 0) or (merges[0] if merges else 1)),
        added=sum(len(h.shape) == 3 and h.shape[:2] == (1, 1) for h in mine),
    )


def _side(told: Any) -> int:
    """Return the side of a size that is a number or two."""
    first = told[0] if isinstance(told, list) and told else told
    return first if isinstance(first, int) else 0


def _told(config: dict[str, Any], stack: Stack) -> tuple[dict[str, Any], bool]:
    """Return the part of a configuration that states as many layers of that width. It tells, too,
    whether that is of vision; of several, it is one that is as the path says."""
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
