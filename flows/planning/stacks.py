"""Finds stacks of identical layers among a checkpoint's tensors, by names and shapes. Their
matrices identify attention and MLP.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from stages.models.hub.headers import Header

MIN_LAYERS = 2
MIN_TENSORS = 4
"""Minimum tensors per layer; a module list with fewer is not a stack of layers."""
ATTENTION = ("attn", "attention")
"""Words in the names of attention modules."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stack:
    """Identical layers under one path, described by one of them."""

    path: str
    layers: int
    parameters: int
    """Parameters of one layer."""
    matrices: Mapping[str, tuple[int, int]]
    """Matrices of one layer: name within the layer → rows and columns."""
    width: int
    """Hidden size."""
    shifts: bool
    """Whether its norms have a bias: LayerNorm has one, RMSNorm has none."""
    mixed: bool
    """Whether it is a mixture of experts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Attention:
    query_width: int
    """Query size over all heads."""
    key_width: int
    """Key size over all heads; values have the same."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mlp:
    width: int
    gated: bool
    """Whether it has a gate matrix."""


def stacks_of(headers: Iterable[Header]) -> list[Stack]:
    """Return all stacks, largest first."""
    held: dict[str, dict[int, dict[str, tuple[int, ...]]]] = {}
    for header in headers:
        names = header.name.split(".")
        at = next((i for i, word in enumerate(names) if word.isdigit()), None)
        if at:
            layers = held.setdefault(".".join(names[:at]), {})
            layers.setdefault(int(names[at]), {})[".".join(names[at + 1 :])] = header.shape
    found = [_stack(path, layers) for path, layers in held.items()]
    return sorted(
        (stack for stack in found if stack is not None),
        key=lambda stack: -stack.layers * stack.parameters,
    )


def _stack(path: str, layers: dict[int, dict[str, tuple[int, ...]]]) -> Stack | None:
    if sorted(layers) != list(range(len(layers))) or len(layers) < MIN_LAYERS:
        return None
    # The most common layer; the first or last layer of some models has more tensors.
    kinds = Counter(tuple(sorted(layer.items())) for layer in layers.values())
    layer = dict(kinds.most_common(1)[0][0])
    matrices = {name: (s[0], s[1]) for name, s in layer.items() if len(s) == 2}
    if len(layer) < MIN_TENSORS or not matrices:
        return None
    scales = [name for name, s in layer.items() if len(s) == 1 and name.endswith("weight")]
    seen = Counter(side for shape in matrices.values() for side in set(shape))
    return Stack(
        path=path,
        layers=len(layers),
        parameters=sum(map(math.prod, layer.values())),
        matrices=matrices,
        width=max(seen, key=lambda side: (seen[side], -side)),
        mixed=any("experts." in name for name in layer),
        shifts=all(f"{name.removesuffix('weight')}bias" in layer for name in scales),
    )


def roots_of(stacks: Sequence[Stack]) -> dict[str, str]:
    """Return for each stack the outermost path that contains no other stack. If there is none,
    return the direct parent, because modules next to the layers belong to them."""
    roots = {}
    for stack in stacks:
        names = stack.path.split(".")
        others = [other.path for other in stacks if other is not stack]
        above = [".".join(names[:n]) for n in range(1, len(names))]
        free = [p for p in above if not any(f"{other}.".startswith(f"{p}.") for other in others)]
        roots[stack.path] = free[0] if free else (above[-1] if above else stack.path)
    return roots


def attention_of(stack: Stack) -> Attention:
    """Derive attention sizes from the matrices of attention modules. Matrices with the hidden size
    as columns are query, key and value, fused or separate; the other one is the output."""
    width = stack.width
    shapes = [
        shape
        for name, shape in stack.matrices.items()
        if any(word in name.lower() for word in ATTENTION)
    ]
    if len(shapes) == 2:  # one for query, key and value, one for the output
        into = max(shapes, key=lambda shape: shape[0])
        out = min(shapes, key=lambda shape: shape[0])
        return Attention(query_width=out[1], key_width=max(1, (into[0] - out[1]) // 2))
    rows = [rows for rows, columns in shapes if columns == width]
    if not rows:
        return Attention(query_width=width, key_width=width)
    return Attention(query_width=max(rows), key_width=min(rows))


def mlp_of(stack: Stack) -> Mlp:
    """Derive MLP sizes from the other matrices: the widest side is the MLP's own."""
    others = [
        shape
        for name, shape in stack.matrices.items()
        if not any(word in name.lower() for word in ATTENTION) and stack.width in shape
    ]
    if not others:
        return Mlp(width=4 * stack.width, gated=False)
    down = [columns for rows, columns in others if rows == stack.width and columns != stack.width]
    into = [rows for rows, columns in others if columns == stack.width]
    width = max(down, default=stack.width)
    gated = sum(rows == width for rows in into) > 1 or 2 * width in into
    return Mlp(width=width, gated=gated)
