"""Tracks the position inside a JSON answer and decides when it must be closed to fit its token
limit.

`schema_bounds.py` gives the maximum size of the rest of an answer in bytes. When only that many
bytes are left, the current value is closed: a string gets its quote, a list its bracket. Outside
such values every byte brings the end nearer, and the model chooses freely.
"""

import json
from collections.abc import Mapping

from stages.decode.schema_bounds import Bounded, longest

QUOTE, BACKSLASH = ord('"'), ord("\\")
LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
IN_TEXT = b'"' + LETTERS + b" " + b"9876543210" + b"-_,;:!?'.+"
"""What is said first in a text that has to end: its quote, or what is no escape. Digits go before
the point and the sign that a time may go on with, letters before them: `Z` ends one."""
BETWEEN = b'}],:"' + b"ntfrualse" + b"9876543210" + b".-"
"""The same outside of texts. Digits from the largest, or `0.000` would never be more than 0."""


def ranks(first: bytes) -> list[int]:
    """Return the rank of each byte, what is not named last. Bytes that go on with a letter are
    before those that begin one."""
    order = {byte: index for index, byte in enumerate(first)}
    return [order.get(byte, 256 + (byte >= 0xC0) + (byte == BACKSLASH)) for byte in range(256)]


class RemainingBytes:
    """The maximum number of bytes that each property may take, its name included, in order."""

    def __init__(self, properties: Mapping[str, Bounded]) -> None:
        self.values = [each.max_bytes for each in properties.values()]
        self.fixed = [each.fixed for each in properties.values()]
        self.indexes = {name: index for index, name in enumerate(properties)}
        property_bytes = [longest(name) + each.max_bytes + 2 for name, each in properties.items()]
        self.bytes_from = [sum(property_bytes[index:]) for index in range(len(property_bytes) + 1)]
        """Bytes from each property on; at the end, none."""

    @property
    def tokens(self) -> int:
        """Return the tokens that an answer may take at least, with its brace and its end."""
        return self.bytes_from[0] + 2


class JsonPosition:
    """The position inside an answer that is being generated."""

    def __init__(self, rest: RemainingBytes) -> None:
        self._rest = rest
        self._depth = 0
        self._escaped = False
        self._index = -1
        """The property that was begun last."""
        self._name = bytearray()
        self._in_value = False
        self._written = 0
        """Bytes of the name or the value that is being said."""
        self.in_text = False
        self.done = False
        """Whether the answer is complete."""

    def feed(self, data: bytes) -> None:
        """Go on by what was said."""
        for byte in data:
            self._feed(byte)

    @property
    def remaining(self) -> int:
        """Return the most bytes that the rest takes for who closes what can grow."""
        if not self._depth:
            return 0 if self.done else self._rest.bytes_from[0] + 1
        bytes_after = self._rest.bytes_from[self._index + 1]
        if not self._in_value:
            return max(1, bytes_after - self._written)
        value = self._rest.values[self._index]
        return bytes_after + 1 + (max(0, value - self._written) if self.fixed else value)

    @property
    def fixed(self) -> bool:
        """Return whether every byte brings the end nearer, whichever is chosen."""
        return self.done or not self._in_value or self._rest.fixed[self._index]

    def must_close(self, tokens: int) -> bool:
        """Return whether what can grow has to be closed with so many tokens left."""
        return not self.fixed and tokens - 1 <= self.remaining

    def _feed(self, byte: int) -> None:
        outermost = self._depth == 1 and not self.in_text
        if outermost and byte == ord(":"):
            self._index = self._rest.indexes[json.loads(self._name)]
            self._begin(in_value=True)
            return
        if outermost and byte == ord(","):
            self._begin(in_value=False)
            return
        self._mark(byte)
        if self._depth == 1 and not self._in_value and byte == ord("{"):
            return
        self._written += 1
        if not self._in_value:
            self._name.append(byte)

    def _mark(self, byte: int) -> None:
        if self.in_text:
            if not self._escaped and byte == QUOTE:
                self.in_text = False
            self._escaped = not self._escaped and byte == BACKSLASH
        elif byte == QUOTE:
            self.in_text = True
        elif byte in b"{[":
            self._depth += 1
        elif byte in b"}]":
            self._depth -= 1
            self.done = not self._depth

    def _begin(self, *, in_value: bool) -> None:
        self._in_value = in_value
        self._written = 0
        self._name.clear()
