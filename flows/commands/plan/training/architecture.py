"""Describes the transformers of a checkpoint, and computes the memory that a layer uses as it runs.

1. The dimensions are read from `config.json` and the headers of the weight files.
2. Stacks of identical layers are found among the checkpoint's tensors, by names and shapes. Their
   matrices identify attention and MLP.
3. A transformer is described from these tensor shapes and `config.json`.
4. The memory that one of its layers uses while it runs is computed from its dimensions.

The numbers follow the transformers classes without gradients. Four tensors of an encoder's width
are live besides a layer's own results: the encoder's input, the residual stream before and after
attention, and its normalized copy. Within a layer, either the attention results or the MLP results
are live. Fused attention stores no scores.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, Literal

from artifacts.disk.regular_files import read_text
from artifacts.errors import UsageError
from stages.models.hub.checkpoint import JSON_BYTES, Checkpoint
from stages.models.hub.headers import Header, read_headers
from stages.models.hub.quantized import settings_in
from stages.models.stored.layouts import StoredLayer, recognized

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


def stacks_of(headers: Iterable[Header]) -> list[Stack]:
    """Return all stacks, largest first."""
    held: dict[str, dict[int, dict[str, tuple[int, ...]]]] = {}
    for header in headers:
        names = header.name.split(".")
        at = next((i for i, word in enumerate(names) if word.isdigit()), None)
        if at:
            layers = held.setdefault(".".join(names[:at]), {})
            layers.setdefault(int(names[at]), {})[".".join(names[at + 1 :])] = header.shape
    stacks = [_stack(path, layers) for path, layers in held.items()]
    return sorted(
        (stack for stack in stacks if stack is not None),
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


def attention_of(stack: Stack) -> tuple[int, int]:
    """Derive the sizes of queries and keys from the matrices of attention modules. Matrices with
    the hidden size as columns are query, key and value, fused or separate; the other one is the
    output."""
    width = stack.width
    shapes = [
        shape
        for name, shape in stack.matrices.items()
        if any(word in name.lower() for word in ATTENTION)
    ]
    if len(shapes) == 2:  # one for query, key and value, one for the output
        into = max(shapes, key=lambda shape: shape[0])
        out = min(shapes, key=lambda shape: shape[0])
        return out[1], max(1, (into[0] - out[1]) // 2)
    rows = [rows for rows, columns in shapes if columns == width]
    if not rows:
        return width, width
    return max(rows), min(rows)


def mlp_of(stack: Stack) -> tuple[int, bool]:
    """Derive the MLP's width from the other matrices, whose widest side it is, and whether it has a
    gate matrix."""
    others = [
        shape
        for name, shape in stack.matrices.items()
        if not any(word in name.lower() for word in ATTENTION) and stack.width in shape
    ]
    if not others:
        return 4 * stack.width, False
    down = [columns for rows, columns in others if rows == stack.width and columns != stack.width]
    into = [rows for rows, columns in others if columns == stack.width]
    width = max(down, default=stack.width)
    gated = sum(rows == width for rows in into) > 1 or 2 * width in into
    return width, gated


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
    query_width: int
    """Query size over all heads."""
    key_width: int
    """Key size over all heads; values have the same."""
    mlp_width: int
    is_gated: bool
    """Whether its MLP has a gate matrix."""
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

    def handed_over(self, edge: int) -> int:
        """Return the prompt tokens of a square image with a side of `edge` pixels."""
        tokens = self.positions or max(1, edge // max(1, self.patch)) ** 2
        grid = math.isqrt(tokens)  # without the class token
        return (grid // self.merge) ** 2 + self.added


def read_transformer(
    config: dict[str, Any], stack: Stack, own: Sequence[Header], is_text: bool
) -> Transformer:
    section, sees = _config_section(config, stack)
    pixels = next((h for h in own if len(h.shape) in (4, 5) and h.shape[1] in (1, 3)), None)
    table = next(
        (h for h in own if POSITIONS in h.name and len(h.shape) == 2 and not is_text), None
    )
    (query_width, key_width), (mlp_width, is_gated) = attention_of(stack), mlp_of(stack)
    heads = next((int(section[key]) for key in HEADS if key in section), 0)
    merges = [h.shape[-1] for h in own if len(h.shape) == 4 and h is not pixels]
    return Transformer(
        path=stack.path,
        kind="text" if is_text else ("vision" if sees or pixels is not None else "other"),
        layers=stack.layers,
        linear_parameters=sum(rows * columns for rows, columns in stack.matrices.values()),
        matrices=tuple(stack.matrices.values()),
        parameters=sum(math.prod(header.shape) for header in own),
        query_width=query_width,
        key_width=key_width,
        mlp_width=mlp_width,
        is_gated=is_gated,
        heads=heads or max(1, query_width // 64),
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
    return max(fitting, key=lambda section: section[1] == seen, default=({}, False))


STREAM_ROWS = 4
"""Values per token, in multiples of the width, besides those of one layer."""
SCORES_BYTES = 4
"""Bytes of an attention score: softmax is computed in 32 bit."""
ROTARY_ROWS = 14
"""Values per token, in multiples of the width, of a vision encoder with rotary embeddings: queries,
keys and values, and queries and keys in 32 bit before and after rotation."""


def pass_bytes(
    transformer: Transformer, sequences: int, tokens: int, item_bytes: int, *, fused: bool = True
) -> int:
    """Return the peak bytes of a forward pass of `sequences` through a transformer.
    `item_bytes`: bytes per number."""
    rows = sequences * tokens
    stream = STREAM_ROWS * transformer.width * item_bytes
    # One token's query, key, value and attention output.
    attention = 2 * (transformer.query_width + transformer.key_width) * item_bytes
    if transformer.kind == "vision" and not transformer.positions:
        attention = ROTARY_ROWS * transformer.width * item_bytes
    if fused:
        return rows * (stream + max(attention, mlp_bytes(transformer, item_bytes)))
    scores = tokens * transformer.heads * (item_bytes + SCORES_BYTES)
    return rows * (stream + max(attention + scores, mlp_bytes(transformer, item_bytes)))


def mlp_bytes(transformer: Transformer, item_bytes: int) -> int:
    """Return the bytes of one token in the MLP.

    They are the values before and after the activation function. A gate adds the product; an
    activation function of several steps adds an intermediate result.
    """
    steps = 2 if transformer.plain and not transformer.is_gated else 3
    return steps * transformer.mlp_width * item_bytes


EMBEDDING_NAMES = ("embed", "wte", "shared")
"""Words in the names of token embedding tables."""
TEXT_MODELS = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")
"""Class name suffixes of models that generate text."""
FLOATS = ("F64", "F32", "F16", "BF16")
"""Unquantized weight types, as safetensors names them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """The dimensions of a checkpoint."""

    transformers: tuple[Transformer, ...]
    parameters: int
    vocabulary: int
    """Rows of the token embedding; 0: none."""
    writes: bool
    """Whether it generates text."""
    stored: tuple[StoredLayer, ...] = ()
    """Its layers that another program than bitsandbytes quantized."""

    @property
    def vision(self) -> Transformer | None:
        return next((t for t in self.transformers if t.kind == "vision"), None)

    @property
    def text(self) -> Transformer | None:
        return next((t for t in self.transformers if t.kind == "text"), None)

    @property
    def text_parameters(self) -> int:
        return self.text.parameters if self.text else 0


def read_architecture(checkpoint: Checkpoint) -> Architecture:
    """Return the architecture of a checkpoint. Raises UsageError if its files do not suffice,
    EnvironmentFault if they cannot be read."""
    try:
        config = json.loads(read_text(checkpoint.folder / "config.json", JSON_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise _unknown(checkpoint, "its config.json cannot be read") from error
    headers = read_headers(checkpoint)
    stored: tuple[StoredLayer, ...] = ()
    if isinstance(config, dict):
        stored = tuple(recognized(headers, settings_in(config) or {}).values())
        headers = _dequantized(headers, stored) if stored else headers
    if any(header.dtype not in FLOATS and len(header.shape) > 1 for header in headers):
        raise _unknown(checkpoint, "its weights are packed, which hides their shapes")
    stacks = stacks_of(headers)
    if not stacks or not isinstance(config, dict):
        raise _unknown(checkpoint, "its tensors form no stack of layers")
    return replace(_architecture(config, headers, stacks), stored=stored)


def _dequantized(headers: Sequence[Header], layers: Sequence[StoredLayer]) -> list[Header]:
    """Return the headers of a checkpoint with the weights in 16 bit that its layers stand for."""
    parts = {part.name for layer in layers for part in layer.parts.values()}
    plain = [header for header in headers if header.name not in parts and header.shape]
    for layer in layers:
        shape, size = (layer.rows, layer.columns), 2 * layer.rows * layer.columns
        plain.append(Header(layer.name, layer.main.shard, "BF16", shape, size))
    return plain


def _unknown(checkpoint: Checkpoint, why: str) -> UsageError:
    return UsageError(
        f"{checkpoint.name} cannot be planned from its dimensions: {why}",
        hint="Choose a checkpoint with a config.json and safetensors files in 16 or 32 bit",
    )


def _architecture(
    config: dict[str, Any], headers: Sequence[Header], stacks: list[Stack]
) -> Architecture:
    roots = roots_of(stacks)
    owners = [_owner(header, stacks, roots) for header in headers]
    outside = [header for header in headers if _is_wide(header, stacks)]
    word_tables = [header for header in outside if _is_embedding(header.name.lower())]
    embedding = max(word_tables, key=lambda h: h.shape[0], default=None)
    text_stack = _text_stack(embedding, stacks) if embedding else None
    tables = [h for h in outside if embedding and h.shape == embedding.shape]
    for at, header in enumerate(headers):
        if owners[at] is None and text_stack is not None and header in tables:
            owners[at] = text_stack
    transformers = []
    for stack in stacks:
        own = [h for h, owner in zip(headers, owners, strict=True) if owner is stack]
        transformers.append(read_transformer(config, stack, own, is_text=stack is text_stack))
    classes = config.get("architectures") or [""]
    return Architecture(
        transformers=tuple(transformers),
        parameters=sum(math.prod(header.shape) for header in headers),
        vocabulary=embedding.shape[0] if embedding else 0,
        writes=len(tables) > 1 or str(classes[0]).endswith(TEXT_MODELS),
    )


def _is_wide(header: Header, stacks: Sequence[Stack]) -> bool:
    """Return whether a tensor outside of all layers is a table as wide as some stack."""
    inside = any(header.name.startswith(f"{stack.path}.") for stack in stacks)
    wide = len(header.shape) == 2 and any(header.shape[1] == stack.width for stack in stacks)
    return not inside and wide and header.shape[0] > header.shape[1]


def _is_embedding(name: str) -> bool:
    return any(word in name for word in EMBEDDING_NAMES) and POSITIONS not in name


def _text_stack(embedding: Header, stacks: Sequence[Stack]) -> Stack:
    """Return the stack of the token embedding: it has the same width and the closest name."""

    def nearness(stack: Stack) -> tuple[int, int, int]:
        pairs = zip(stack.path.split("."), embedding.name.split("."), strict=False)
        shared = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
        return shared, -stack.path.count("."), stack.parameters

    return max((s for s in stacks if s.width == embedding.shape[1]), key=nearness)


def _owner(header: Header, stacks: Sequence[Stack], roots: dict[str, str]) -> Stack | None:
    """Return the stack whose root contains a tensor. Prefer the innermost of nested roots, then the
    stack with the tensor's width."""
    inside = [s for s in stacks if header.name.startswith(f"{roots[s.path]}.")]

    def nearness(stack: Stack) -> tuple[bool, int, bool]:
        own = header.name.startswith(f"{stack.path}.")
        return own, len(roots[stack.path]), stack.width in header.shape[:1]

    return max(inside, key=nearness, default=None)
