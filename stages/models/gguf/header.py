"""Reads the header of a GGUF file, and loads llama.cpp's library, refusing what could do damage.

llama.cpp asserts on some damaged headers, which ends the process, and trusts lengths in others. So
every file passes here before any library sees it. This part imports no library:

1. Every count and length is compared with what is left of the file before anything is read.
2. Names of metadata and tensors are unique, and all texts are UTF-8.
3. Tensors lie one behind the other, within the file, and have types that llama.cpp computes with.

llama.cpp passes structures by value, and they grow between builds. Reading one with the layout of
another build would corrupt memory without an error. So the module finds the library and, before
anything is loaded, checks that it is the one whose interface is known:

1. The library fills a buffer with its default parameters. The number of bytes that it writes must
   equal the size that the binding states.
2. A build for another processor is refused by the operating system, with one line.
"""

import codecs
import ctypes
import math
import os
import platform
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from io import BufferedReader
from pathlib import Path
from types import ModuleType
from typing import Any

from artifacts.disk.regular_files import open_regular
from artifacts.errors import EnvironmentFault, UsageError
from artifacts.packages import require_extra
from stages.models.gguf import how_to_install

MAGIC = b"GGUF"
VERSIONS = (2, 3)
HEADER_BYTES = 128 << 20
"""Largest header. That of a vocabulary of 262,144 tokens with its merges takes 20 MB."""
ENTRIES = 1 << 16
"""Most metadata keys, and most tensors."""
STRINGS = 1 << 21
"""Most strings in all lists together."""
KEPT_BYTES = 1 << 20
"""Most bytes of the texts and lists that are kept as they are: no long one is used."""
A_NUMBER = 16
"""Bytes of them that a number in a list counts as. A tuple takes 8 to 40 for each."""
PIECE = 1 << 16
"""Bytes of a text that are decoded at once; the longest name of metadata."""
TOKENS = "tokenizer.ggml.tokens"
END = b"\xff"
"""Ends each of the tokens. It is no part of UTF-8."""
NAME_BYTES = 63
"""Longest name of a tensor."""
DIMENSIONS = 4
ALIGNMENT = 32
"""Tensors are padded to a multiple of so many bytes, unless the file states another number."""
ALIGNMENTS = frozenset(1 << power for power in range(5, 17))
TABLE = "token_embd.weight"
"""Name of the embedding table."""
HEAD = "output.weight"
"""Name of the output head."""
ALIGNMENT_KEY = "general.alignment"
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}
"""Type of a value → its format."""
BOOL, STRING, LIST = 7, 8, 9
F32 = 0
TYPES: Mapping[int, tuple[str, int, int]] = {
    F32: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2),
    2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34), 20: ("IQ4_NL", 32, 18), 39: ("MXFP4", 32, 17),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 23: ("IQ4_XS", 256, 136),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 22: ("IQ2_S", 256, 82),
    18: ("IQ3_XXS", 256, 98), 21: ("IQ3_S", 256, 110), 19: ("IQ1_S", 256, 50),
    29: ("IQ1_M", 256, 56), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
}  # fmt: skip
"""Type of a matrix → its name, the numbers of a block, and the bytes of a block."""
HINT = "Download or convert the file again"
SHOWN = 200
"""Most characters of a line that names what a file contains."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GgufTensor:
    """Where a tensor lies."""

    shape: tuple[int, ...]
    """Sizes, as transformers orders them: rows first."""
    type: int
    offset: int
    """Bytes from the start of the tensors' data."""
    bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class GgufHeader:
    """The header of a GGUF file."""

    path: Path
    values: Mapping[str, Any]
    """Key → its value; lists are tuples. What is too long is a description of it, and the tokens
    are one text of bytes: as a tuple they take ten times more."""
    tensors: Mapping[str, GgufTensor]
    data_start: int
    """Byte at which the tensors' data starts."""
    alignment: int

    @property
    def architecture(self) -> str:
        name = self.values.get("general.architecture", "")
        return name if isinstance(name, str) else ""

    @property
    def parameters(self) -> int:
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())

    def tensor(self, name: str) -> GgufTensor:
        """Return a tensor. Raises UsageError."""
        if name not in self.tensors:
            raise UsageError(f"{self.path} has no tensor {name}", hint=HINT)
        return self.tensors[name]


def read_header(path: Path) -> GgufHeader:
    """Return the header of a file. Raises UsageError."""
    try:
        with open_regular(path) as file:
            size = file.seek(0, 2)
            file.seek(0)
            return _HeaderReader(path, file, size).header()
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}", hint="Give a GGUF file"
        ) from error


class _HeaderReader:
    """Reads a header from its first byte to its last."""

    def __init__(self, path: Path, file: BufferedReader, size: int) -> None:
        self._path, self._file, self._size = path, file, size
        self._at = self._strings = self._kept = 0
        self._utf8 = codecs.getincrementaldecoder("utf-8")()

    def header(self) -> GgufHeader:
        if self._take(len(MAGIC), "its first bytes") != MAGIC:
            raise self._damaged("it does not begin as GGUF files do")
        if (version := self._number("I", "its version")) not in VERSIONS:
            raise self._damaged(f"version {version} of the format is not known")
        tensors = self._count("tensors", ENTRIES, least=1)
        values = self._values(self._count("metadata keys", ENTRIES))
        alignment = values.get(ALIGNMENT_KEY, ALIGNMENT)
        if type(alignment) is not int or alignment not in ALIGNMENTS:
            raise self._damaged(f"{ALIGNMENT_KEY} is {alignment!r}")
        places = self._tensors(tensors, alignment)
        data_start = aligned(self._at, alignment)
        if short := [n for n, t in places.items() if data_start + t.offset + t.bytes > self._size]:
            raise self._damaged(f"it ends before the data of tensor {short[0]}")
        end = max(data_start + t.offset + aligned(t.bytes, alignment) for t in places.values())
        if self._size > end:
            raise self._damaged(f"it has {self._size - end:,} bytes that belong to no tensor")
        return GgufHeader(
            path=self._path,
            values=values,
            tensors=places,
            data_start=data_start,
            alignment=alignment,
        )

    def _values(self, count: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for _ in range(count):
            key = self._text("the name of a metadata key", PIECE).decode()
            if key in values or not key or not (key.isascii() and key.isprintable()):
                raise self._damaged(f"it has the metadata key {key!r} twice, or as no name")
            kind = self._number("I", key)
            values[key] = self._list(key) if kind == LIST else self._value(kind, key)
        return values

    def _value(self, kind: int, key: str) -> Any:
        if kind == STRING:
            text = self._text(key)
            return text.decode() if self._keeps(len(text)) else f"a text of {len(text):,} bytes"
        if kind == BOOL:
            return bool(self._number("B", key))
        if kind not in NUMBERS:
            raise self._damaged(f"metadata key {key} has the unknown type {kind}")
        return self._number(NUMBERS[kind], key)

    def _list(self, key: str) -> tuple[Any, ...] | bytearray | str:
        kind, count = self._number("I", key), self._number("Q", key)
        if kind == STRING:
            self._strings += count
            if self._strings > STRINGS:
                raise self._damaged(f"metadata key {key} has {count:,} texts")
            tokens = bytearray()
            for _ in range(count):
                text = self._text(key)
                if key == TOKENS:
                    tokens += text + END
            return tokens if key == TOKENS else f"a list of {count:,} texts"
        form = "B" if kind == BOOL else NUMBERS.get(kind)
        if form is None:
            raise self._damaged(f"metadata key {key} is a list of the unknown type {kind}")
        content = self._take(count * struct.calcsize(f"<{form}"), key)
        if not self._keeps(A_NUMBER * count):
            return f"a list of {count:,} numbers"
        return struct.unpack(f"<{count}{form}", content)

    def _keeps(self, size: int) -> bool:
        """Return whether there is room for a value of so many bytes, and take it."""
        if fits := self._kept + size <= KEPT_BYTES:
            self._kept += size
        return fits

    def _tensors(self, count: int, alignment: int) -> dict[str, GgufTensor]:
        tensors: dict[str, GgufTensor] = {}
        expected = 0
        for _ in range(count):
            name = self._text("the name of a tensor", NAME_BYTES).decode()
            if name in tensors or not name or not name.isprintable():
                raise self._damaged(f"it has the tensor {name!r} twice, or as no name")
            tensors[name] = tensor = self._tensor(name)
            if tensor.offset != expected:
                raise self._damaged(
                    f"tensor {name} lies at byte {tensor.offset} of the data instead of {expected}"
                )
            expected += aligned(tensor.bytes, alignment)
        return tensors

    def _tensor(self, name: str) -> GgufTensor:
        count = self._number("I", name)
        if not 1 <= count <= DIMENSIONS:
            raise self._damaged(f"tensor {name} has {count} dimensions")
        sizes = tuple(self._number("Q", name) for _ in range(count))
        kind, offset = self._number("I", name), self._number("Q", name)
        if kind not in TYPES or (count == 1 and kind != F32):
            raise self._damaged(f"tensor {name} has the type {kind}, which is not computed with")
        _, block, size = TYPES[kind]
        if not all(sizes) or sizes[0] % block:
            raise self._damaged(f"tensor {name} has the shape {' x '.join(map(str, sizes))}")
        held = math.prod(sizes) // block * size
        return GgufTensor(shape=sizes[::-1], type=kind, offset=offset, bytes=held)

    def _count(self, what: str, most: int, least: int = 0) -> int:
        count = int(self._number("Q", f"the number of {what}"))
        if not least <= count <= most:
            raise self._damaged(f"it states {count:,} {what}")
        return count

    def _number(self, form: str, what: str) -> Any:
        (number,) = struct.unpack(f"<{form}", self._take(struct.calcsize(f"<{form}"), what))
        return number

    def _text(self, what: str, most: int = HEADER_BYTES) -> bytes:
        """Return the bytes of a text, which are UTF-8."""
        length = self._number("Q", what)
        if length > most:
            raise self._damaged(f"{what} is {length:,} bytes long")
        encoded = self._take(length, what)
        try:
            for at in range(0, length, PIECE):
                self._utf8.decode(encoded[at : at + PIECE], at + PIECE >= length)
            return encoded
        except UnicodeDecodeError as error:
            raise self._damaged(f"{what} is no UTF-8 text") from error

    def _take(self, count: int, what: str) -> bytes:
        self._at += count
        if self._at > self._size:
            raise self._damaged(f"it ends within {what}")
        if self._at > HEADER_BYTES:
            raise self._damaged(f"its header is larger than {HEADER_BYTES >> 20} MiB")
        if len(content := self._file.read(count)) < count:
            raise self._damaged("it became shorter while it was read")
        return content

    def _damaged(self, why: str) -> UsageError:
        return UsageError(f"{self._path} is damaged: {in_line(why)}", hint=HINT)


def in_line(text: str) -> str:
    """Return a text that may contain names from a file, as a short line for a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)[:SHOWN]


def aligned(size: int, alignment: int) -> int:
    """Return a size with its padding."""
    return -(-size // alignment) * alignment


BINDING = "llama_cpp.llama_cpp"
PROBED = {
    "llama_model_default_params": "llama_model_params",
    "llama_context_default_params": "llama_context_params",
    "llama_model_quantize_default_params": "llama_model_quantize_params",
}
"""Function that returns a structure by value → its class in the binding."""
PROBE_BYTES = 4096
"""Size of the buffer that a probed function writes to."""
PADDING = 8
"""Most bytes at the end of a structure that its alignment leaves unwritten."""
WARNING, CONTINUED = 3, 5
"""Levels of llama.cpp's log: from warnings to errors, and lines that continue another."""
KEPT_LINES = 4
KEY_BYTES = 127
"""Longest key of metadata that a caller may state."""
_log: list[str] = []


@cache
def library() -> ModuleType:
    """Return the binding's module. Raises EnvironmentFault if none is installed, or if its library
    has another interface."""
    # A crash inside must not start a debugger, and no variable may replace the library.
    os.environ["GGML_NO_BACKTRACE"] = "1"
    os.environ.pop("LLAMA_CPP_LIB_PATH", None)
    require_extra("gguf", "llama.cpp")
    try:
        binding = import_module(BINDING)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        why = f"{error}".splitlines()[0]
        raise EnvironmentFault(
            f"engine gguf: {why}", hint=f"Install it: {how_to_install()}"
        ) from error
    _probe(binding)
    binding.llama_log_set(_keep_line(binding), ctypes.c_void_p(0))
    binding.llama_backend_init()
    return binding


def _probe(binding: ModuleType) -> None:
    """Compare the sizes of structures. Raises EnvironmentFault."""
    if platform.machine() != "x86_64":
        return  # elsewhere a structure is not returned through a pointer that can be given
    for function, structure in PROBED.items():
        expected = ctypes.sizeof(getattr(binding, structure))
        written = _bytes_written(binding._lib, function)
        if not expected - PADDING < written <= expected:
            raise EnvironmentFault(
                f"engine gguf: this libllama writes {written} bytes of {structure}, and the "
                f"binding has {expected}: they belong to different versions",
                hint=f"Install both together: {how_to_install()}",
            )


def _bytes_written(library_: ctypes.CDLL, function: str) -> int:
    last = 0
    for fill in (0xA5, 0x5A):
        buffer = (ctypes.c_ubyte * PROBE_BYTES)(*[fill] * PROBE_BYTES)
        call = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)((function, library_))
        call(ctypes.addressof(buffer))
        last = max([last, *(at + 1 for at in range(PROBE_BYTES) if buffer[at] != fill)])
    return last


def without_tokenizer(api: ModuleType, header: GgufHeader) -> Any:
    """Return the metadata by which llama.cpp does not read the tokenizer of a file: Penstock's own
    is used, a large one takes seconds, and a damaged one could do harm."""
    overrides = (api.llama_model_kv_override * 3)()  # the last, without a name, ends the list
    overrides[0].tag, overrides[0].key = api.LLAMA_KV_OVERRIDE_TYPE_STR, b"tokenizer.ggml.model"
    overrides[0].value.val_str = b"none"
    key = f"{header.architecture}.vocab_size".encode()
    overrides[1].tag, overrides[1].key = api.LLAMA_KV_OVERRIDE_TYPE_INT, key[:KEY_BYTES]
    overrides[1].value.val_i64 = header.tensor(TABLE).shape[0]
    return overrides


@cache
def _keep_line(binding: ModuleType) -> Any:
    """Return the callback that keeps the last warnings and errors of the log."""

    @binding.llama_log_callback  # type: ignore[untyped-decorator]
    def keep(level: int, text: bytes, _: Any) -> None:
        if WARNING <= level < CONTINUED:
            _log.append(text.decode(errors="replace").strip())
            del _log[:-KEPT_LINES]

    return keep


def last_words() -> str:
    """Return the last warnings and errors of llama.cpp in one line, and forget them."""
    reason = in_line(" ".join("; ".join(filter(None, _log)).split()))
    _log.clear()
    return reason or "llama.cpp gave no reason"
