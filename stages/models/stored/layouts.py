"""Recognizes how a file stores one quantized linear layer. Reads headers and no weights.

All layouts mean the same: weight = (code - zero) x scale. They differ in how codes are packed, and
in how many codes share a scale. A layer is recognized by the names, types and shapes of its tensors
and by the shape of its weight in the model:

    awq   `qweight` [columns, rows/8], the eight codes of a word out of order; AutoAWQ, `gemm`
    gptq  `qweight` [columns x bits/32, rows]; the zeros of version 1 are stored less one
    pack  `weight_packed` [rows, columns x bits/32]; compressed-tensors, 2 to 8 bits
    byte  `weight` of int8 or FP8, a code in a byte; scales of the tensor, rows, groups or blocks
    fp4   `weight_packed` of two codes in a byte; NVFP4 (FP8 scales) and MXFP4 (exponents)

The settings in config.json say only what shapes do not: AWQ or GPTQ, whose turned codes may look
alike, GPTQ's version and the size of blocks.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from artifacts.errors import EnvironmentFault, UsageError
from stages.models.hub.checkpoint import DOWNLOAD_HINT
from stages.models.hub.headers import Header
from stages.models.hub.quantized import ADVICE

FLOATS = ("F16", "BF16", "F32")
EXPONENTS = ("U8", "F8_E8M0")
"""Types of scales that are powers of two."""
BLOCK = 128
"""Rows and columns that share a scale of FP8, if config.json does not say."""
NAMES = (
    *("qweight", "qzeros", "scales", "g_idx", "weight_packed", "weight_scale", "weight_scale_inv"),
    *("weight_zero_point", "weight_shape", "weight_g_idx", "weight_global_scale"),
)
"""Local names of the tensors that these layouts store besides `weight`."""
NOT_WEIGHTS = ("input_activations", "output_activations", "kv_cache_scheme")
"""Settings of what is quantized at run time."""
BYTES = ("I8", "F8_E4M3")
"""Types of `weight` itself whose numbers are codes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What config.json says of the layouts."""

    method: str = ""
    v2: bool = False
    """Whether GPTQ's zeros are stored as they are."""
    block: tuple[int, int] = (BLOCK, BLOCK)
    """Rows and columns of a block of FP8."""
    group_sizes: frozenset[int] = frozenset()
    """All stated group sizes; empty: none is stated."""
    bits: frozenset[int] = frozenset()
    """All stated numbers of bits."""
    types: frozenset[str] = frozenset()
    """`int` and `float`, as far as they are stated."""

    @classmethod
    def of(cls, stated: Mapping[str, Any]) -> "Settings":
        method = str(stated.get("quant_method", ""))
        form = stated.get("checkpoint_format") or stated.get("format")
        block = next(iter(_values(stated, ("weight_block_size", "block_structure"))), None)
        sizes = _values(stated, ("group_size", "q_group_size"))
        bits = _values(stated, ("bits", "w_bit", "num_bits"))
        sides = [n for n in block if type(n) is int and n > 0] if isinstance(block, list) else []
        return cls(
            method=method,
            v2=form == "gptq_v2",
            block=(sides[0], sides[1]) if len(sides) == 2 else (BLOCK, BLOCK),
            group_sizes=frozenset(n for n in sizes if isinstance(n, int)),
            bits=frozenset(n for n in bits if isinstance(n, int)),
            types=frozenset(map(str, _values(stated, ("type",)) or ["float"] * ("fp8" in method))),
        )


def _values(stated: Any, names: Collection[str]) -> list[Any]:
    """Return all values for weights under these names, at any depth, that are not None."""
    if isinstance(stated, list | tuple):
        return [value for each in stated for value in _values(each, names)]
    if not isinstance(stated, Mapping):
        return []
    found = [value for name, value in stated.items() if name in names and value is not None]
    below = [value for name, value in stated.items() if name not in NOT_WEIGHTS]
    return found + [one for value in below for one in _values(value, names)]


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredLayer:
    """One quantized linear layer."""

    name: str
    """Name that its weight has in a checkpoint of 16 bits."""
    path: str = ""
    """Name of its weight in the model."""
    parts: Mapping[str, Header] = field(default_factory=dict)
    """Local name → tensor in the files."""
    rows: int
    columns: int
    layout: str = ""
    """`awq`, `gptq`, `pack`, `byte` or `fp4`."""
    kind: str = ""
    """What captions call it, such as `gptq-int4`."""
    bits: int = 8
    """Bits of a code in the file."""
    scales: str = ""
    """Local name of the scales."""
    table: tuple[int, int] = (1, 1)
    """Shape of the table of scales."""
    block: tuple[int, int] = (1, 1)
    """Rows and columns of the weight that share a scale."""
    v2: bool = False

    @property
    def main(self) -> Header:
        """Return the tensor with the codes."""
        return next(
            self.parts[n] for n in ("qweight", "weight_packed", "weight") if n in self.parts
        )

    @property
    def pairs(self) -> bool:
        """Return whether two codes share a byte of memory."""
        return self.bits == 4 and self.columns % 2 == 0

    @property
    def packs(self) -> bool:
        """Return whether it can stay packed in memory."""
        return self.bits == 8 or self.pairs

    @property
    def has_zeros(self) -> bool:
        return not self.parts.keys().isdisjoint(("qzeros", "weight_zero_point"))

    @property
    def middle(self) -> int:
        """Return what is subtracted from all codes if the file has no zeros."""
        return 2 ** (self.bits - 1) if self.layout in ("awq", "gptq", "pack") else 0

    @property
    def has_index(self) -> bool:
        return not self.parts.keys().isdisjoint(("g_idx", "weight_g_idx"))

    @property
    def packed_bytes(self) -> int:
        """Return the bytes that it takes in memory while it is packed."""
        cells = math.prod(self.table)
        scales = self.parts[self.scales]
        each = scales.size // max(1, math.prod(scales.shape))
        beside = cells * (each + self.has_zeros) + 4 * self.columns * self.has_index
        return self.rows * self.columns // (1 + self.pairs) + beside

    def damaged(self, what: str) -> EnvironmentFault:
        return EnvironmentFault(f"the quantized layer {self.stem}: {what}", hint=DOWNLOAD_HINT)

    def unreadable(self, what: str) -> UsageError:
        return UsageError(f"the quantized layer {self.stem} {what}", hint=ADVICE)

    @property
    def stem(self) -> str:
        return self.name.removesuffix(".weight")

    @property
    def module(self) -> str:
        """Return its path in the model."""
        return self.path.removesuffix(".weight")

    def expect(self, name: str, dtypes: Collection[str], *shapes: tuple[int, ...]) -> Header:
        """Return one of its tensors. Raises EnvironmentFault unless it has one of these types and,
        if any are given, one of these shapes."""
        part = self.parts.get(name)
        if part is None:
            raise self.damaged(f"its {name} is missing")
        if part.dtype not in dtypes:
            raise self.damaged(f"its {name} is stored as {part.dtype}, not {' or '.join(dtypes)}")
        if shapes and part.shape not in shapes:
            right = " or ".join(str(list(shape)) for shape in dict.fromkeys(shapes))
            raise self.damaged(f"its {name} has shape {list(part.shape)}, not {right}")
        return part

    def matrix(self, name: str) -> tuple[int, int]:
        """Return the shape of one of its tensors. Raises EnvironmentFault unless it has two
        dimensions."""
        shape = self.parts[name].shape if name in self.parts else ()
        if len(shape) != 2:
            raise self.damaged(f"its {name} is missing or no matrix")
        return shape[0], shape[1]

    def may_have(self, name: str, dtypes: Collection[str], *shapes: tuple[int, ...]) -> None:
        if name in self.parts:
            self.expect(name, dtypes, *shapes)


def parts_of(headers: Iterable[Header]) -> dict[str, dict[str, Header]]:
    """Return the tensors of each layer with a quantized weight: name of the weight → local name →
    tensor."""
    every: dict[str, dict[str, Header]] = {}
    marked = set()
    for header in headers:
        stem, _, local = header.name.rpartition(".")
        if local in NAMES or local == "weight":
            every.setdefault(f"{stem}.weight", {})[local] = header
            if local in NAMES or header.dtype in BYTES:
                marked.add(f"{stem}.weight")
    return {name: parts for name, parts in every.items() if name in marked}


def layers_by_headers(headers: Iterable[Header], stated: Mapping[str, Any]) -> list[StoredLayer]:
    """Return the quantized layers of a checkpoint without its model. Their shapes follow from those
    of codes and scales. Raises EnvironmentFault and UsageError as `recognize` does."""
    settings, found = Settings.of(stated), []
    for name, parts in parts_of(headers).items():
        layer = StoredLayer(name=name, parts=parts, rows=0, columns=0)
        rows, columns = _shape(layer, settings)
        found.append(recognize(replace(layer, rows=rows, columns=columns), settings))
    return found


def _shape(layer: StoredLayer, settings: Settings) -> tuple[int, int]:
    """Return the rows and columns of a layer's weight."""
    if "qweight" in layer.parts:
        high, _ = layer.matrix("qweight")
        _, rows = layer.matrix("scales")
        if settings.method == "awq":
            return rows, high
        bits = 32 * layer.matrix("qzeros")[1] // max(1, rows)
        return rows, 32 * high // max(1, bits)
    if "weight_packed" not in layer.parts:
        return layer.matrix("weight")
    rows, wide = layer.matrix("weight_packed")
    if layer.main.dtype != "I32":
        return rows, 2 * wide
    groups = layer.expect("weight_scale", FLOATS).shape[1:] or (1,)
    sizes = {groups[0] * size for size in settings.group_sizes if size > 0}
    if groups[0] == 1:
        sizes |= {32 * wide // bits for bits in settings.bits if bits > 0}
    fits = {n for n in sizes for bits in settings.bits if math.ceil(n * bits / 32) == wide}
    if len(fits) != 1:
        raise layer.unreadable("does not state its number of columns")
    return rows, fits.pop()


def recognize(layer: StoredLayer, settings: Settings) -> StoredLayer:
    """Return the layer with its layout. Raises EnvironmentFault for tensors that do not belong
    together, UsageError for a layout that is not read."""
    held, words = layer.parts, layer.parts.get("weight_packed")
    plain = held.get("weight")
    if "qweight" in held or {"qzeros", "scales", "g_idx"} & held.keys():
        layout = "awq" if settings.method == "awq" else "gptq"
    elif words is not None:
        layout = "pack" if words.dtype == "I32" else "fp4"
    elif plain is not None:
        layout = "byte"
    else:
        raise layer.damaged("its weight is missing")
    found = LAYOUTS[layout](replace(layer, layout=layout), settings)
    rows, columns = found.block
    if rows == 1 and found.layout != "fp4" and settings.group_sizes:
        whole = columns == layer.columns
        stated = {-1, columns} if whole else {columns}
        few = whole and max(settings.group_sizes) >= columns
        if not (stated & settings.group_sizes or few or (whole and found.layout == "byte")):
            sizes = " or ".join(map(str, sorted(settings.group_sizes)))
            what = f"its scales are for groups of {columns}, but config.json says {sizes}"
            raise layer.damaged(what)
    return found


def _groups(layer: StoredLayer, count: int) -> int:
    """Return the columns of each of so many groups."""
    if count < 1 or layer.columns % count:
        raise layer.damaged(f"its {layer.columns} columns cannot be in {count} groups")
    return layer.columns // count


def _words(layer: StoredLayer, settings: Settings) -> StoredLayer:
    """Check AWQ, whose words go along rows, and GPTQ, whose words go along columns."""
    rows, columns = layer.rows, layer.columns
    scales = layer.expect("scales", FLOATS)
    words = layer.expect("qweight", ("I32",)).shape
    is_awq, bits = layer.layout == "awq", 4
    if not is_awq:
        bits = 32 * words[0] // columns if len(words) == 2 else 0
    if bits not in (2, 4, 8):
        raise layer.unreadable(
            f"has codes of shape {list(words)}, which no layout that is read has"
        )
    if is_awq and rows % 8:
        raise layer.damaged(f"its {rows} rows do not fill words of eight codes")
    groups = scales.shape[0] if scales.shape else 0
    whole = (columns, rows // 8) if is_awq else (columns * bits // 32, rows)
    layer.expect("qweight", ("I32",), whole)
    layer.expect("scales", FLOATS, (groups, rows))
    layer.expect("qzeros", ("I32",), (groups, math.ceil(rows * bits / 32)))
    layer.may_have("g_idx", ("I32", "I64"), (columns,))
    return replace(
        layer,
        kind="awq" if is_awq else f"gptq-int{bits}",
        bits=bits,
        scales="scales",
        table=(rows, groups),
        block=(1, _groups(layer, groups)),
        v2=settings.v2,
    )


def _pack(layer: StoredLayer, settings: Settings) -> StoredLayer:
    rows, columns = layer.rows, layer.columns
    packed = layer.expect("weight_packed", ("I32",)).shape
    fits = [n for n in range(2, 9) if packed[-1:] == (math.ceil(columns * n / 32),)]
    bits = next((n for n in fits if n in settings.bits), fits[0] if fits else 0)
    layer.expect("weight_packed", ("I32",), (rows, math.ceil(columns * (bits or 4) / 32)))
    scales = layer.expect("weight_scale", FLOATS)
    groups = scales.shape[1] if len(scales.shape) == 2 else 1
    layer.expect("weight_scale", FLOATS, (rows, groups))
    layer.may_have("weight_shape", ("I64", "I32"), (2,))
    layer.may_have("weight_g_idx", ("I32", "I64"), (columns,))
    if "weight_zero_point" in layer.parts:
        in_words = layer.parts["weight_zero_point"].dtype == "I32"
        zeros = (math.ceil(rows * bits / 32), groups) if in_words else (rows, groups)
        layer.expect("weight_zero_point", ("I32", "I8"), zeros)
    return replace(
        layer,
        kind=f"w{bits}a16",
        bits=bits,
        scales="weight_scale",
        table=(rows, groups),
        block=(1, _groups(layer, groups)),
    )


def _byte(layer: StoredLayer, settings: Settings) -> StoredLayer:
    rows, columns = layer.rows, layer.columns
    weight = layer.expect("weight", BYTES, (rows, columns))
    if settings.types and ("int" if weight.dtype == "I8" else "float") not in settings.types:
        stated = " and ".join(sorted(settings.types))
        raise layer.damaged(f"its weight is {weight.dtype}, but config.json says {stated}")
    name = "weight_scale_inv" if "weight_scale_inv" in layer.parts else "weight_scale"
    scales = layer.expect(name, (*FLOATS, *EXPONENTS)).shape
    tall, wide = settings.block
    if math.prod(scales) == 1:
        table, block = (1, 1), (rows, columns)
    elif scales in ((rows,), (rows, 1)):
        table, block = (rows, 1), (1, columns)
    elif len(scales) == 2 and scales == (math.ceil(rows / tall), math.ceil(columns / wide)):
        table, block = (scales[0], scales[1]), (tall, wide)
    else:
        groups = scales[-1] if scales else 0
        table, block = (rows, groups), (1, _groups(layer, groups))
        layer.expect(name, FLOATS, table)
    layer.may_have("weight_zero_point", ("I8",), scales)
    kind = "w8a8" if weight.dtype == "I8" else "fp8"
    return replace(layer, kind=kind, scales=name, table=table, block=block)


def _fp4(layer: StoredLayer, settings: Settings) -> StoredLayer:
    rows, columns = layer.rows, layer.columns
    codes = layer.expect("weight_packed", ("U8",), (rows, columns // 2))
    nvidia = layer.parts.get("weight_scale", codes).dtype == "F8_E4M3"
    size = 16 if nvidia else 32
    dtypes = ("F8_E4M3",) if nvidia else EXPONENTS
    layer.expect("weight_scale", dtypes, (rows, columns // size))
    if nvidia:
        layer.expect("weight_global_scale", ("F32",), (), (1,))
    return replace(
        layer,
        kind="nvfp4" if nvidia else "mxfp4",
        bits=4,
        scales="weight_scale",
        table=(rows, columns // size),
        block=(1, size),
    )


LAYOUTS: dict[str, Callable[[StoredLayer, Settings], StoredLayer]] = {
    "awq": _words,
    "gptq": _words,
    "pack": _pack,
    "byte": _byte,
    "fp4": _fp4,
}
"""Layout → what checks it and fills in its fields."""
