"""GGUF files byte by byte, valid or damaged, without the package that writes them."""

import random
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

FORMS = {bool: (7, "?"), int: (4, "I"), float: (6, "f")}


def text(value: str | bytes) -> bytes:
    content = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(content)) + content


def value(given: Any) -> bytes:
    """A value of metadata, with its type."""
    if isinstance(given, bytes):
        return given  # damaged on purpose
    if isinstance(given, str):
        return struct.pack("<I", 8) + text(given)
    if isinstance(given, tuple):
        first = given[0]
        kind = 8 if isinstance(first, str) else FORMS[type(first)][0]
        items = b"".join(text(one) if kind == 8 else value(one)[4:] for one in given)
        return struct.pack("<IIQ", 9, kind, len(given)) + items
    kind, form = FORMS[type(given)]
    return struct.pack(f"<I{form}", kind, given)


class Tensor(NamedTuple):
    """A tensor of a file: its sizes as the file states them, its type, and its bytes."""

    sizes: tuple[int, ...]
    kind: int = 0
    size: int = 0
    """Bytes; 0: as a tensor of 32 bit."""
    offset: int | None = None
    """Byte of the data at which it is said to lie; None: where it does."""

    @property
    def bytes(self) -> int:
        total = 4
        for each in self.sizes:
            total *= each
        return self.size or total


TENSORS: Mapping[str, Tensor] = {
    "token_embd.weight": Tensor((32, 8)),
    "output_norm.weight": Tensor((32,)),
    "blk.0.ffn_up.weight": Tensor((32, 64), kind=8, size=64 * 34),
}
VALUES: Mapping[str, Any] = {
    "general.architecture": "qwen2",
    "general.description": "A file",
    "qwen2.block_count": 1,
    "qwen2.embedding_length": 32,
    "qwen2.attention.layer_norm_rms_epsilon": 1e-6,
    "qwen2.rope.dimension_sections": (2, 3, 3, 0),
    "tokenizer.ggml.tokens": ("a", "b", "c"),
    "tokenizer.chat_template": "{{ 9 ** 9 ** 9 }}",
}


def gguf_bytes(
    values: Mapping[str, Any] = VALUES,
    tensors: Mapping[str, Tensor] = TENSORS,
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
    data: bool = True,
) -> bytes:
    """A file with this content. `counts`: of tensors and metadata, if not the true ones."""
    many = counts or (len(tensors), len(values))
    made = magic + struct.pack("<IQQ", version, *many)
    for key, given in values.items():
        made += text(key) + value(given)
    offset = 0
    for name, tensor in tensors.items():
        placed = offset if tensor.offset is None else tensor.offset
        made += text(name) + struct.pack(
            f"<I{len(tensor.sizes)}Q", len(tensor.sizes), *tensor.sizes
        )
        made += struct.pack("<IQ", tensor.kind, placed % (1 << 64))
        offset += -(-tensor.bytes // alignment) * alignment
    made += bytes(-len(made) % alignment)
    return made + bytes(offset if data else 0)


Way = Callable[[random.Random], bytes]
TYPES = (1, 2, 8, 9, 12, 14, 24, 25, 26, 27, 28, 30, 36, 99, 1 << 31)
"""Types of tensors. Some do not exist, others are no weights."""


def mutations(content: bytes, header: int, names: Iterable[str]) -> Mapping[str, Way]:
    """Ways to damage a file whose header has so many bytes, and that has tensors of these names.
    Each draws where."""
    return {**_anywhere(content, header), **_of_tensors(content, list(names))}


def _of_tensors(content: bytes, names: list[str]) -> Mapping[str, Way]:
    """Ways to damage what the header says of tensors."""
    starts = [content.index(text(name)) for name in names]

    def fields(name: str, start: int) -> tuple[int, int, int]:
        """The places of the first size, of the type and of the offset."""
        first = start + len(text(name)) + 4
        (count,) = struct.unpack("<I", content[first - 4 : first])
        return first, first + 8 * count, first + 8 * count + 4

    places = [fields(name, start) for name, start in zip(names, starts, strict=True)]

    def put(place: int, form: str, number: int) -> bytes:
        new = struct.pack(f"<{form}", number)
        return content[:place] + new + content[place + len(new) :]

    def overlapping(draw: random.Random) -> bytes:
        (_, _, one), (_, _, other) = draw.sample(places, 2)
        return put(one, "Q", struct.unpack("<Q", content[other : other + 8])[0])

    def negative(draw: random.Random) -> bytes:
        return put(draw.choice(places)[2], "Q", (1 << 64) - 32 * draw.randrange(1, 99))

    def typed(draw: random.Random) -> bytes:
        return put(draw.choice(places)[1], "I", draw.choice(TYPES))

    def huge(draw: random.Random) -> bytes:
        return put(draw.choice(places)[0], "Q", draw.choice([0, 1, 1 << 31, 1 << 62, 1 << 63]))

    def twice(draw: random.Random) -> bytes:
        one, other = draw.sample(range(len(names)), 2)
        start, new = starts[other], text(names[one])
        return content[:start] + new + content[start + len(text(names[other])) :]

    return {
        "tensors that overlap": overlapping,
        "a negative offset": negative,
        "another type": typed,
        "another size": huge,
        "a name twice": twice,
    }


def _anywhere(content: bytes, header: int) -> Mapping[str, Way]:

    def at(draw: random.Random, put: bytes) -> bytes:
        place = draw.randrange(header - len(put))
        return content[:place] + put + content[place + len(put) :]

    def count(draw: random.Random, place: int) -> bytes:
        huge = draw.choice([1 << 63, (1 << 64) - 1, 1 << 32, 1 << 40, 1 << 20, 99_999, 0])
        return content[:place] + struct.pack("<Q", huge) + content[place + 8 :]

    def flipped(draw: random.Random) -> bytes:
        place = draw.randrange(header)
        changed = content[place] ^ (1 << draw.randrange(8))
        return content[:place] + bytes([changed]) + content[place + 1 :]

    def moved(draw: random.Random) -> bytes:
        first, second = sorted(draw.sample(range(header), 2))
        return content[:first] + content[second:]

    def doubled(draw: random.Random) -> bytes:
        first, second = sorted(draw.sample(range(header), 2))
        return content[:second] + content[first:]

    def number(draw: random.Random) -> bytes:
        return at(draw, struct.pack("<Q", draw.choice([(1 << 64) - 32, 1 << 63, 1 << 33, 7])))

    def several(draw: random.Random) -> bytes:
        changed = bytearray(content)
        for _ in range(draw.randrange(2, 40)):
            changed[draw.randrange(header)] = draw.randrange(256)
        return bytes(changed)

    return {
        "several other bytes": several,
        "noise behind the magic": lambda draw: content[:8] + draw.randbytes(draw.randrange(2000)),
        "cut within the header": lambda draw: content[: draw.randrange(header)],
        "cut within the data": lambda draw: content[: draw.randrange(header, len(content) - 32)],
        "another count of tensors": lambda draw: count(draw, 8),
        "another count of metadata": lambda draw: count(draw, 16),
        "a large number somewhere": number,
        "bytes that are no text": lambda draw: at(draw, b"\xff\xfe\xc0"),
        "zeros": lambda draw: at(draw, bytes(draw.choice([4, 8, 16]))),
        "a part left out": moved,
        "a part doubled": doubled,
        "a flipped bit": flipped,
    }
