"""Computes the cache memory of one row, layer by layer. The module imports no model library."""

from dataclasses import dataclass

from stages.models.footprint import ITEM_BYTES


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerMemory:
    """The cache of one row in layers of one kind. Bytes are for a half that computes in 16 bit."""

    kind: str
    """Name of the transformers cache-layer class."""
    layers: int = 1
    """Number of such layers."""
    token_bytes: int = 0
    """Bytes per cached token in one layer: keys and values."""
    window: int = 0
    """Maximum number of cached tokens; 0: all."""
    state_bytes: int = 0
    """Bytes per row that do not depend on its length."""
    state_bytes_32: int = 0
    """The same if the half computes in 32 bit."""

    def bytes(self, tokens: int, item_bytes: int) -> int:
        """Return the bytes that one layer uses for so many tokens, in numbers of `item_bytes`."""
        seen = min(tokens, self.window) if self.window else tokens
        return seen * self.token_bytes * item_bytes // ITEM_BYTES

    def states(self, item_bytes: int) -> int:
        """Return the bytes of its states, in numbers of `item_bytes`."""
        return self.state_bytes_32 if item_bytes > ITEM_BYTES else self.state_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class RowMemory:
    """The cache of one row, and the output per token."""

    kept: tuple[LayerMemory, ...]
    words: int
    """Vocabulary size: one logit per entry is computed for the next token."""

    def bytes(self, tokens: int, item_bytes: int) -> int:
        """Return the bytes that all layers use for so many tokens, without states."""
        return sum(kind.layers * kind.bytes(tokens, item_bytes) for kind in self.kept)

    def states(self, item_bytes: int) -> int:
        """Return the bytes of all states of a row."""
        return sum(kind.layers * kind.states(item_bytes) for kind in self.kept)

    @property
    def has_states(self) -> bool:
        """Return whether each row of a step has states, used or not. Such a model has few rows."""
        return any(kind.state_bytes or kind.state_bytes_32 for kind in self.kept)

    def largest(self, tokens: int, item_bytes: int) -> int:
        """Return the bytes of the layer that uses most for so many tokens."""
        return max((kind.bytes(tokens, item_bytes) for kind in self.kept), default=0)

    def largest_states(self, item_bytes: int) -> int:
        """Return the state bytes of the layer with the largest states."""
        return max((kind.states(item_bytes) for kind in self.kept), default=0)
