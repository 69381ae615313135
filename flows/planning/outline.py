"""A checkpoint by its dimensions alone, read off `config.json` and the headers of its files; knows
no class of any model, and what it says of computing is arithmetic."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal

from artifacts.errors import UsageError
from artifacts.regular import read_text
from flows.planning.stacks import Attention, Mlp, Stack, attention_of, mlp_of, roots_of, stacks_of
from stages.models.hub.checkpoint import JSON_BYTES, Checkpoint
from stages.models.hub.headers import Header, read_headers

LAYERS = ("num_hidden_layers", "depth", "num_layers", "n_layer", "n_layers", "layers")
HEADS = ("num_attention_heads", "num_heads", "n_head", "n_heads", "attention_heads")
POSITIONS = "pos"
"""What the name of a table of positions holds."""
PLAIN = ("gelu", "relu", "silu", "gelu_pytorch_tanh")
"""Nonlinearities that are computed in one step."""
TABLES = ("embed", "wte", "shared")
"""What the name of a table of words holds, one of these."""
WRITES = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")
"""How the name of a class ends whose model writes text."""
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Types of weights that are as they are, in words of safetensors and of torch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tower:
    """Equal layers one after another, with what belongs to them."""

    path: str
    """Where its layers are."""
    kind: Literal["vision", "text", "other"]
    layers: int
    layer_parameters: int
    linear_parameters: int
    """Of those of one layer, what stands in matrices: what int8 and nf4 take and LoRA adapts."""
    matrices: tuple[tuple[int, int], ...]
    """Rows and columns of the matrices of one layer."""
    parameters: int
    """Of the layers and of what surrounds them."""
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
    frames_a_patch: int = 1
    positions: int = 0
    """Tokens of one image inside the tower; 0 where they follow from the image's size."""
    image_size: int = 0
    """Pixels of an image's side; 0 where any goes."""
    merge: int = 1
    """How many of its tokens become one of the language half's, along one side."""
    added: int = 0
    """Tokens put around those of an image."""

    def tokens_of(self, edge: int) -> int:
        """Tokens inside the tower for a square image of so many pixels a side."""
        return self.positions or max(1, edge // max(1, self.patch)) ** 2

    def handed_over(self, edge: int) -> int:
        """Tokens of such an image in a prompt."""
        patches = self.tokens_of(edge)
        grid = math.isqrt(patches)  # without the class token
        return (grid // self.merge) ** 2 + self.added


@dataclass(frozen=True, kw_only=True, slots=True)
class Outline:
    """A checkpoint known by its dimensions."""

    towers: tuple[Tower, ...]
    parameters: int
    connector_parameters: int
    """Of what belongs to no tower, which goes with the vision half."""
    vocabulary: int
    """Rows of the table of words; 0 where there is none."""
    embedding_parameters: int
    """Of that table, and of the head where it is a table of its own."""
    tied: bool
    """Whether the head is that table."""
    writes: bool
    """Whether it writes text."""
    dtype: str
    """Of most of its numbers, such as bfloat16."""

    @property
    def vision(self) -> Tower | None:
        return next((t for t in self.towers if t.kind == "vision"), None)

    @property
    def text(self) -> Tower | None:
        return next((t for t in self.towers if t.kind == "text"), None)

    @property
    def text_parameters(self) -> int:
        return self.text.parameters if self.text else 0

    @property
    def vision_parameters(self) -> int:
        """Of the vision half: all but the tower of words."""
        return self.parameters - self.text_parameters


def read_outline(checkpoint: Checkpoint) -> Outline:
    """The outline of a checkpoint. Raises UsageError where its files do not tell enough,
    EnvironmentFault where they cannot be read."""
    try:
        config = json.loads(read_text(checkpoint.folder / "config.json", JSON_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise _unknown(checkpoint, "its config.json cannot be read") from error
    headers = read_headers(checkpoint)
    if any(header.dtype not in FLOATS and len(header.shape) > 1 for header in headers):
        raise _unknown(checkpoint, "its weights are packed, so that shapes say little")
    found = stacks_of(headers)
    if not found or not isinstance(config, dict):
        raise _unknown(checkpoint, "its tensors are not those of layers")
    return _outline(config, headers, found)


def _unknown(checkpoint: Checkpoint, why: str) -> UsageError:
    return UsageError(
        f"{checkpoint.name} cannot be planned from its dimensions: {why}",
        hint="Choose a checkpoint with a config.json and safetensors files in 16 or 32 bit",
    )


def _outline(config: dict[str, Any], headers: Sequence[Header], stacks: list[Stack]) -> Outline:
    roots = roots_of(stacks)
    owners = [_owner(header, stacks, roots) for header in headers]
    counts = [math.prod(header.shape) for header in headers]
    outside = [header for header in headers if _is_wide(header, stacks)]
    words = [header for header in outside if _is_words(header.name.lower())]
    embedding = max(words, key=lambda h: h.shape[0], default=None)
    writer = _writer(embedding, stacks) if embedding else None
    tables = [h for h in outside if embedding and h.shape == embedding.shape]
    for at, header in enumerate(headers):
        if owners[at] is None and writer is not None and header in tables:
            owners[at] = writer
    towers = []
    for stack in stacks:
        mine = [h for h, owner in zip(headers, owners, strict=True) if owner is stack]
        towers.append(_tower(config, stack, mine, is_text=stack is writer))
    total = sum(counts)
    classes = config.get("architectures") or [""]
    dtypes: dict[str, int] = {}
    for header, count in zip(headers, counts, strict=True):
        dtypes[header.dtype] = dtypes.get(header.dtype, 0) + count
    head = len(tables) > 1
    return Outline(
        towers=tuple(towers),
        parameters=total,
        connector_parameters=total - sum(tower.parameters for tower in towers),
        vocabulary=embedding.shape[0] if embedding else 0,
        embedding_parameters=sum(math.prod(h.shape) for h in tables),
        tied=bool(tables) and not head,
        writes=head or str(classes[0]).endswith(WRITES),
        dtype=FLOATS.get(max(dtypes, key=lambda name: dtypes[name]), "float32"),
    )


def _is_wide(header: Header, stacks: Sequence[Stack]) -> bool:
    """Whether a tensor outside of all layers is a table of some tower's width."""
    inside = any(header.name.startswith(f"{stack.path}.") for stack in stacks)
    wide = len(header.shape) == 2 and any(header.shape[1] == stack.width for stack in stacks)
    return not inside and wide and header.shape[0] > header.shape[1]


def _is_words(name: str) -> bool:
    return any(word in name for word in TABLES) and POSITIONS not in name


def _writer(embedding: Header, stacks: Sequence[Stack]) -> Stack:
    """The stack that the table of words belongs to: of its width, and nearest to it by name."""

    def nearness(stack: Stack) -> tuple[int, int, int]:
        return _common(stack.path, embedding.name), -stack.path.count("."), stack.parameters

    return max((s for s in stacks if s.width == embedding.shape[1]), key=nearness)


def _common(one: str, other: str) -> int:
    """How many words two paths begin with alike."""
    pairs = zip(one.split("."), other.split("."), strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))


def _owner(header: Header, stacks: Sequence[Stack], roots: dict[str, str]) -> Stack | None:
    """The stack in whose root a tensor lies: of nested roots the innermost, of two in one root the
    one that is as wide as it."""
    inside = [s for s in stacks if header.name.startswith(f"{roots[s.path]}.")]

    def nearness(stack: Stack) -> tuple[bool, int, bool]:
        own = header.name.startswith(f"{stack.path}.")
        return own, len(roots[stack.path]), stack.width in header.shape[:1]

    return max(inside, key=nearness, default=None)


def _tower(config: dict[str, Any], stack: Stack, mine: Sequence[Header], is_text: bool) -> Tower:
    told, sees = _told(config, stack)
    pixels = next((h for h in mine if len(h.shape) in (4, 5) and h.shape[1] in (1, 3)), None)
    table = next(
        (h for h in mine if POSITIONS in h.name and len(h.shape) == 2 and not is_text), None
    )
    attention = attention_of(stack)
    heads = next((int(told[key]) for key in HEADS if key in told), 0)
    merges = [h.shape[-1] for h in mine if len(h.shape) == 4 and h is not pixels]
    added = [h for h in mine if len(h.shape) == 3 and h.shape[:2] == (1, 1)]
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
        frames_a_patch=pixels.shape[2] if pixels is not None and len(pixels.shape) == 5 else 1,
        positions=table.shape[0] if table is not None else 0,
        image_size=_side(told.get("image_size")),
        merge=int(told.get("spatial_merge_size", 0) or (merges[0] if merges else 1)),
        added=len(added),
    )


def _side(told: Any) -> int:
    """Of a size that is a number or two."""
    first = told[0] if isinstance(told, list) and told else told
    return first if isinstance(first, int) else 0


def _told(config: dict[str, Any], stack: Stack) -> tuple[dict[str, Any], bool]:
    """The part of a configuration that states as many layers of that width, and whether it is of
    vision; of several, one that is as the path says."""
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
