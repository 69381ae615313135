"""Reads a checkpoint's dimensions from `config.json` and the headers of its weight files."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from artifacts.errors import UsageError
from artifacts.regular_files import read_text
from flows.planning.stacks import Stack, roots_of, stacks_of
from flows.planning.transformer import POSITIONS, Transformer, read_transformer
from stages.models.hub.checkpoint import JSON_BYTES, Checkpoint
from stages.models.hub.headers import Header, read_headers

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
    if any(header.dtype not in FLOATS and len(header.shape) > 1 for header in headers):
        raise _unknown(checkpoint, "its weights are packed, which hides their shapes")
    found = stacks_of(headers)
    if not found or not isinstance(config, dict):
        raise _unknown(checkpoint, "its tensors form no stack of layers")
    return _architecture(config, headers, found)


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
        return _common_prefix(stack.path, embedding.name), -stack.path.count("."), stack.parameters

    return max((s for s in stacks if s.width == embedding.shape[1]), key=nearness)


def _common_prefix(one: str, other: str) -> int:
    """Return the number of leading path elements that two paths share."""
    pairs = zip(one.split("."), other.split("."), strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))


def _owner(header: Header, stacks: Sequence[Stack], roots: dict[str, str]) -> Stack | None:
    """Return the stack whose root contains a tensor. Prefer the innermost of nested roots, then the
    stack with the tensor's width."""
    inside = [s for s in stacks if header.name.startswith(f"{roots[s.path]}.")]

    def nearness(stack: Stack) -> tuple[bool, int, bool]:
        own = header.name.startswith(f"{stack.path}.")
        return own, len(roots[stack.path]), stack.width in header.shape[:1]

    return max(inside, key=nearness, default=None)
