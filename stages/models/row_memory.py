"""Computes the KV-cache memory of one row, layer by layer. Imports no model library."""

from dataclasses import dataclass

from stages.models.footprint import ITEM_BYTES


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerMemory:
    """The cache of one row in layers of one kind. Bytes are those of a half that computes in 16
    bit."""

    kind: str
    """Name of the class that keeps it in transformers' own cache."""
    layers: int = 1
    """Count of the layers that are alike."""
    token_bytes: int = 0
    """Bytes of each token that one of them remembers: keys and values."""
    window: int = 0
    """Most tokens that it remembers; 0: all."""
    state_bytes: int = 0
    """Bytes that it takes of a row however long that is."""
    state_bytes_32: int = 0
    """The same of a half that computes in 32 bit."""

    def bytes(self, tokens: int, each: int) -> int:
        """Return what one of them takes of so many tokens, in numbers of `each` bytes."""
        seen = min(tokens, self.window) if self.window else tokens
        return seen * self.token_bytes * each // ITEM_BYTES

    def states(self, each: int) -> int:
        """Return the bytes of its states, in numbers of `each` bytes."""
        return self.state_bytes_32 if each > ITEM_BYTES else self.state_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class RowMemory:
    """The cache of one row, and the output per token."""

    kept: tuple[LayerMemory, ...]
    words: int
    """Numbers that it says of the next token: one a word of its vocabulary."""

    def bytes(self, tokens: int, each: int) -> int:
        """Return what all layers take of so many tokens, without states."""
        return sum(kind.layers * kind.bytes(tokens, each) for kind in self.kept)

    def states(self, each: int) -> int:
        """Return the bytes of all states of a row."""
        return sum(kind.layers * kind.states(each) for kind in self.kept)

    def largest(self, tokens: int, each: int) -> int:
        """Return what the layer takes of so many tokens that takes most."""
        return max((kind.bytes(tokens, each) for kind in self.kept), default=0)

    def largest_states(self, each: int) -> int:
        """Return the bytes of the states of the layer that has most."""
        return max((kind.states(each) for kind in self.kept), default=0)
