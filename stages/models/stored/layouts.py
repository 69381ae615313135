"""Recognizes how a file stores one quantized linear layer. Reads headers and no weights.

All layouts mean the same: weight = (code - zero) x scale. They differ in how codes are packed, and
in how many codes share a scale. A layer is recognized by the names, types and shapes of its tensors
and by the shape of its weight in the model:

    awq   `qweight` [columns, rows/8], the eight codes of a word out of order; AutoAWQ, `gemm`
    gptq  `qweight` [columns x bits/32, rows]; the zeros of version 1 are stored less one
    pack  `weight_packed` [rows, columns x bits/32]; compressed-tensors, 2 to 8 bits
    byte  `weight` of int8 or FP8, a code in a byte; scales of the tensor, rows, groups or blocks
    fp4   `weight_packed` of two codes in a byte; NVFP4 (FP8 scales) and MXFP4 (exponents)

The settings in config.json say what shapes do not (AWQ or GPTQ, whose turned codes may look alike,
GPTQ's version, the size of blocks) and what must be there: zeros, indexes of groups, their size.

`recognized` is the one way from headers and config.json to layers: of commands, plans, servers and
`load_half`.
"""

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from artifacts.errors import EnvironmentFault, UsageError
from stages.models.hub.checkpoint import DOWNLOAD_HINT
from stages.models.hub.headers import Header
from stages.models.hub.quantized import ADVICE, is_read_here

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
BITSANDBYTES = re.compile(
    r"\.weight\.(absmax|quant_map|nested_absmax|nested_quant_map"
    r"|quant_state\.bitsandbytes__(?P<kind>\w+))$"
    r"|\.(?P<row_scales>SCB|weight_format)$"
)
"""Name endings of the tensors that bitsandbytes stores beside a quantized weight."""
OTHERS = {
    "weight._scale": "by optimum-quanto",
    "weight_scale_2": "by ModelOpt",
    "W_q": "by HQQ",
    "_weight_qdata": "by torchao",
}
"""Local name of a tensor of a form that is not read → the form, after "stored"."""
BYTES = ("I8", "F8_E4M3")
"""Types of `weight` itself whose numbers are codes."""
EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in")
"""Last words of the names of embeddings."""
BESIDE = (".pre_quant_scale", ".act.scales")
"""Endings of tensors that change what goes into a quantized layer, which is not read."""
USUAL_GROUP = 128
"""Columns that share a scale where settings of AWQ and GPTQ leave it out (transformers)."""
MOST_REPEATS, LONGEST_NAME = 4, 200
"""Bounds of a pattern in config.json and of a name that is compared with it: a pattern of somebody
could take hours."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scheme:
    """What config.json says of some layers."""

    bits: int = 0
    """Bits of a code; 0: not stated."""
    group: int = 0
    """Columns that share a scale; -1: all; 0: not stated."""
    block: tuple[int, int] = (BLOCK, BLOCK)
    """Rows and columns of a block of FP8."""
    type: str = ""
    """`int` or `float`, if it is stated."""
    has_zeros: bool = False
    """Whether the zero of each group is stored."""
    has_index: bool = False
    """Whether the group of each column is stored."""
    v2: bool | None = False
    """Whether GPTQ's zeros are stored as they are. None: they are all the middle, so they say it
    themselves."""

    @classmethod
    def of(cls, stated: Mapping[str, Any]) -> "Scheme":
        def first(*names: str) -> Any:
            return next((stated[n] for n in names if stated.get(n) is not None), None)

        method = str(first("quant_method") or "").lower()
        group = (
            -1 if first("strategy") == "channel" else _whole(first("group_size", "q_group_size"))
        )
        if method in ("gptq", "awq") and not {"group_size", "q_group_size"} & stated.keys():
            group = USUAL_GROUP
        symmetric = _flag(first("symmetric", "sym"))
        order = str(first("actorder")).lower() in ("group", "dynamic", "true")
        form = str(first("checkpoint_format", "format")).lower()
        return cls(
            bits=_whole(first("bits", "w_bit", "num_bits")),
            group=group,
            block=_sides(first("weight_block_size", "block_structure")),
            type=str(first("type") or ("float" if "fp8" in method else "")),
            has_zeros=symmetric is False,
            has_index=order or _flag(first("desc_act")) is True,
            v2=None if symmetric else form == "gptq_v2",
        )


def _whole(value: Any) -> int:
    """Return a whole number of config.json, which may be written as a float or a text; 0 for null.
    Raises UsageError for any other value."""
    text = str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()
    if value is None or (re.fullmatch(r"-?[0-9]{1,9}", text) and not isinstance(value, bool)):
        return 0 if value is None else int(text)
    raise _not_understood(value)


def _flag(value: Any) -> bool | None:
    """Return a truth value of config.json; None for null. Raises UsageError for any other value."""
    if value is None:
        return None
    if (word := str(value).strip().lower()) in ("true", "false", "1", "0", "1.0", "0.0"):
        return word in ("true", "1", "1.0")
    raise _not_understood(value)


def _sides(value: Any) -> tuple[int, int]:
    """Return rows and columns of a block, stated as a list or as `128x128`. Raises UsageError."""
    if value is None:
        return BLOCK, BLOCK
    sides = value.lower().split("x") if isinstance(value, str) else value
    if isinstance(sides, list) and len(sides) == 2:
        rows, columns = map(_whole, sides)
        if rows > 0 and columns > 0:
            return rows, columns
    raise _not_understood(value)


def _not_understood(value: Any) -> UsageError:
    return UsageError(
        f"the quantization settings of config.json hold {str(value)[:40]!r}, which is no value "
        "that Penstock understands there",
        hint=ADVICE,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What config.json says of the layouts."""

    method: str = ""
    targets: tuple[tuple[str, Scheme], ...] = ()
    """Class, name or, after `re:`, pattern of layers → their scheme."""
    by_text: bool = False
    """Whether of several patterns the first by its text counts."""

    @classmethod
    def of(cls, stated: Mapping[str, Any]) -> "Settings":
        targets = [(str(t), Scheme.of(s)) for targets, s in _targets(stated) for t in targets]
        method, by_text = str(stated.get("quant_method", "")), "config_groups" in stated
        return cls(method=method, targets=tuple(targets), by_text=by_text)

    def schemes_of(self, layer: "StoredLayer") -> list[Scheme]:
        """Return the scheme of a layer. Versions of transformers name layers differently, so for a
        layer that no target names these are all, and its tensors decide. Raises UsageError."""
        names = (layer.stem, layer.module)
        exact = [scheme for target, scheme in self.targets if target in names]
        # compressed-tensors takes patterns by their text, GPTQModel in their order.
        targets = sorted(self.targets, key=lambda pair: pair[0]) if self.by_text else self.targets
        by_pattern = [s for target, s in targets if _finds(layer, target, names)]
        classes = ("Embedding", "Linear") if layer.is_embedding else ("Linear",)
        by_class = [s for name in classes for target, s in self.targets if target == name]
        every = list(dict.fromkeys(scheme for _, scheme in self.targets))
        return (exact or by_pattern or by_class)[:1] or every


def _targets(stated: Mapping[str, Any]) -> Iterable[tuple[Iterable[Any], Mapping[str, Any]]]:
    """Return targets of layers, and the settings of their weights."""
    groups = stated.get("config_groups")
    if isinstance(groups, Mapping):
        for group in groups.values():
            own = group.get("weights") if isinstance(group, Mapping) else None
            if isinstance(own, Mapping):
                targets = group.get("targets")
                yield targets if isinstance(targets, list) else ["Linear"], own
        return
    dynamic = stated.get("dynamic")  # of GPTQModel; after "-:" are layers that are in 16 bit
    for pattern, own in dynamic.items() if isinstance(dynamic, Mapping) else ():
        if isinstance(own, Mapping) and not pattern.startswith("-:"):
            yield [f"re:{pattern.removeprefix('+:')}"], {**stated, **own}
    yield ["Linear"], stated


def _finds(layer: "StoredLayer", target: str, names: Iterable[str]) -> bool:
    """Return whether a target is a pattern of one of these names. Raises UsageError for a pattern
    that could take too long."""
    if not target.startswith("re:"):
        return False
    pattern = target.removeprefix("re:")
    if re.search(r"\)[*+{]", pattern) or len(re.findall(r"[*+{]", pattern)) > MOST_REPEATS:
        raise layer.unreadable(f"config.json names layers by the pattern {pattern[:60]}")
    try:
        return any(re.match(pattern, name[:LONGEST_NAME]) for name in names)
    except re.error as error:
        raise layer.unreadable(f"config.json names layers by the pattern {pattern[:60]}") from error


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
    """Rows and columns of the weight that share a scale; the last of them may be fewer."""
    scheme: Scheme = Scheme()
    """What config.json says of it."""

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
        scale_bytes = scales.size // max(1, math.prod(scales.shape))
        beside = cells * (scale_bytes + self.has_zeros) + 4 * self.columns * self.has_index
        return self.rows * self.columns // (1 + self.pairs) + beside

    def damaged(self, what: str) -> EnvironmentFault:
        return EnvironmentFault(f"the quantized layer {self.stem}: {what}", hint=DOWNLOAD_HINT)

    def unreadable(self, what: str) -> UsageError:
        return UsageError(
            f"the quantized layer {self.stem} is stored in a form that Penstock does not read "
            f"({self._form}): {what}",
            hint=ADVICE,
        )

    @property
    def _form(self) -> str:
        """Return the layout and what config.json says, or without a layout what is stored."""
        if not self.layout:
            return ", ".join(sorted(self.parts))
        bits, group = self.scheme.bits, self.scheme.group
        groups = "a scale for each row" if group == -1 else f"groups of {group}"
        stated = [f"{bits} bit"] * (bits > 0) + [groups] * (group != 0)
        return ", ".join([LAYOUTS[self.layout][0], *stated])

    @property
    def is_embedding(self) -> bool:
        """Return whether it is one of words, which config.json names by another class."""
        return self.stem.rpartition(".")[2] in EMBEDDINGS

    @property
    def stem(self) -> str:
        return self.name.removesuffix(".weight")

    @property
    def module(self) -> str:
        """Return its path in the model."""
        return self.path.removesuffix(".weight")

    def expect(self, name: str, dtypes: Collection[str], *shapes: tuple[int, ...]) -> Header:
        """Return one of its tensors. Raises UsageError unless it has one of these types and, if any
        are given, one of these shapes; EnvironmentFault if its bytes do not suit its shape."""
        part = self.parts.get(name)
        if part is None:
            raise self.unreadable(f"its {name} is missing")
        if part.dtype not in dtypes:
            types = " or ".join(dtypes)
            raise self.unreadable(f"its {name} is stored as {part.dtype}, not {types}")
        if part.size * 8 != math.prod(part.shape) * int(re.sub(r"\D*(\d+).*", r"\1", part.dtype)):
            raise self.damaged(f"its {name} has {part.size:,} bytes, which are not its numbers")
        if shapes and part.shape not in shapes:
            right = " or ".join(str(list(shape)) for shape in dict.fromkeys(shapes))
            raise self.unreadable(f"its {name} has shape {list(part.shape)}, not {right}")
        return part

    def matrix(self, name: str) -> tuple[int, int]:
        """Return the shape of one of its tensors. Raises UsageError unless it has two
        dimensions."""
        shape = self.parts[name].shape if name in self.parts else ()
        if len(shape) != 2:
            raise self.unreadable(f"its {name} is missing or no matrix")
        return shape[0], shape[1]

    def may_have(
        self, name: str, dtypes: Collection[str], *shapes: tuple[int, ...], stated: bool = False
    ) -> None:
        """Check a tensor that only some layers have; it must be there if config.json has `stated`
        it. Raises what `expect` does."""
        if stated and name not in self.parts:
            raise self.unreadable(f"config.json states its {name}, which is missing")
        if name in self.parts:
            self.expect(name, dtypes, *shapes)


def parts_of(headers: Iterable[Header], stated: Mapping[str, Any]) -> dict[str, dict[str, Header]]:
    """Return the tensors of all weights that may be quantized, other than those of bitsandbytes if
    the settings `stated` are its own: name of the weight → local name → tensor."""
    every: dict[str, dict[str, Header]] = {}
    marked, sizes = set[str](), {header.name: header for header in headers}
    for header in sizes.values():
        stem, _, local = header.name.rpartition(".")
        before, inner, below = header.name.rpartition(".weight.")
        if inner:
            stem, local = before, f"weight.{below}"
        of_weight = local in (*NAMES, *OTHERS, "weight", "SCB", "weight_format") or bool(inner)
        name = f"{stem}.weight" if of_weight else header.name
        scaled = any(f"{name}_{scale}" in sizes for scale in ("scale", "scale_inv"))
        codes = header.dtype[0] in "IU" or header.dtype in BYTES or header.dtype[:2] == "F4"
        if of_weight or (codes and (header.dtype[0] != "F" or scaled)):
            every.setdefault(name, {})[local] = header
            if local != "weight" or codes:
                marked.add(name)
    if stated and not is_read_here(stated):
        marked = {name for name in marked if not _is_of_bitsandbytes(every[name])}
    return {name: parts for name, parts in every.items() if name in marked}


def _is_of_bitsandbytes(parts: Mapping[str, Header]) -> bool:
    """Return whether a weight has scales of bitsandbytes, and no others."""
    theirs = any(BITSANDBYTES.search(part.name) for part in parts.values())
    return theirs and parts.keys().isdisjoint((*NAMES, *OTHERS))


Places = Mapping[str, tuple[str, tuple[int, ...]]]
"""Name of a weight → its path and its shape in the model."""


def recognized(
    headers: Sequence[Header],
    stated: Mapping[str, Any],
    places_of: Callable[[Sequence[str]], Places] | None = None,
) -> dict[str, StoredLayer]:
    """Return the layers that another program than bitsandbytes quantized: name of the weight →
    layer. `stated` are the settings of config.json, empty if it has none. `places_of` returns the
    path and the shape that weights have in the model, of those that it has; without a model, shapes
    follow from codes and scales. Raises UsageError for a form that is not read, EnvironmentFault
    for damage."""
    settings, layers = Settings.of(stated), dict[str, StoredLayer]()
    if is_read_here(stated):
        _refuse_experts(headers)
        if beside := next((h.name for h in headers if h.name.endswith(BESIDE)), ""):
            raise UsageError(
                f"inputs of quantized layers are scaled ({beside}), which Penstock does not read",
                hint=ADVICE,
            )
    weights = parts_of(headers, stated)
    if places_of is None:
        places: Places = {name: ("", ()) for name in weights if name.endswith(".weight")}
    else:
        places = places_of([*weights])
    for name, (path, shape) in places.items():
        parts = weights[name]
        layer = StoredLayer(name=name, path=path, parts=parts, rows=0, columns=0)
        _refuse_others(layer, stated)
        if not is_read_here(stated):
            continue  # weights in FP8 without scales: the loader casts them
        if len(shape) not in (0, 2):
            raise layer.unreadable(f"it has {len(shape)} dimensions, and only matrices are read")
        rows, columns = shape or _shape(layer, settings)
        layers[name] = recognize(replace(layer, rows=rows, columns=columns), settings)
    _refuse_unlike(layers.values())
    return layers


def _refuse_experts(headers: Iterable[Header]) -> None:
    """Refuse quantized experts of a mixture: a model holds them as one tensor, which a class of its
    own computes with. Raises UsageError."""
    header = next((h for h in headers if ".experts." in h.name and h.dtype not in FLOATS), None)
    if header:
        raise UsageError(
            f"the experts of this mixture are quantized ({header.name} is {header.dtype}), and "
            "Penstock reads experts in 16 bit only",
            hint="Use its original in 16 bit, or a model without experts",
        )


def _refuse_others(layer: StoredLayer, stated: Mapping[str, Any]) -> None:
    """Refuse a form that is not read, and one that config.json does not state: the loader would
    take its codes for weights. Raises UsageError, or EnvironmentFault if its scales are lost."""
    parts = layer.parts
    is_of_bitsandbytes = _is_of_bitsandbytes(parts)
    form = next((form for name, form in OTHERS.items() if name in parts), "")
    unknown = [n for n in parts if n.startswith("weight.") and not is_of_bitsandbytes]
    if form or unknown:
        form = form or f"in a form that is not known here ({', '.join(sorted(unknown))})"
        raise UsageError(
            f"{layer.name} is stored {form}, which Penstock does not read", hint=ADVICE
        )
    holds_codes = parts.keys() != {"weight"} or parts["weight"].dtype[0] in "IU"
    if not holds_codes or (is_read_here(stated) and not is_of_bitsandbytes):
        return
    method = stated.get("quant_method", "bitsandbytes") if stated else ""
    if method == "bitsandbytes" and not is_of_bitsandbytes:
        raise EnvironmentFault(
            f"{layer.name} is quantized by bitsandbytes, and its scales are not in the file",
            hint="Copy or download the checkpoint again",
        )
    says = f"says that it is by {method}" if method else "has no quantization_config"
    if not is_of_bitsandbytes:
        says += ". Files of ModelOpt say it in hf_quant_config.json, which Penstock does not read"
    dtypes = ", ".join(sorted({part.dtype for part in parts.values()}))
    raise UsageError(f"{layer.name} is quantized ({dtypes}), but config.json {says}", hint=ADVICE)


def _refuse_unlike(layers: Iterable[StoredLayer]) -> None:
    """Raise UsageError if layers of one kind have different tensors, or tensors of different types:
    one of them would be read as other numbers."""
    first: dict[tuple[str, Scheme], StoredLayer] = {}
    for layer in layers:
        other = first.setdefault((layer.kind, layer.scheme), layer)
        types, others = ({n: p.dtype for n, p in side.parts.items()} for side in (layer, other))
        if unlike := sorted(types.items() ^ others.items()):
            name = unlike[0][0]
            words = [dtypes.get(name, "missing") for dtypes in (types, others)]
            raise layer.unreadable(f"its {name} is {words[0]}, and {words[1]} in {other.stem}")


def _shape(layer: StoredLayer, settings: Settings) -> tuple[int, int]:
    """Return the rows and columns of a layer's weight. Columns that fill no word are not known: the
    most that there may be are returned."""
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
    groups = (*layer.expect("weight_scale", FLOATS).shape, 1)[1]
    for scheme in settings.schemes_of(layer):
        bits, group = max(scheme.bits, 1), scheme.group
        for columns in (groups * group, 32 * wide // bits):
            fits = columns > 0 and math.ceil(columns * bits / 32) == wide
            if scheme.bits and fits and (group < 1 or math.ceil(columns / group) == groups):
                return rows, columns
    raise layer.unreadable("config.json states no bits and groups that suit it")


def recognize(layer: StoredLayer, settings: Settings) -> StoredLayer:
    """Return the layer with its layout. Raises EnvironmentFault for damaged tensors, UsageError for
    a layout that is not read."""
    held, words = layer.parts, layer.parts.get("weight_packed")
    if "qweight" in held or {"qzeros", "scales", "g_idx"} & held.keys():
        layout = "awq" if settings.method == "awq" else "gptq"
    elif words is not None:
        layout = "pack" if words.dtype == "I32" else "fp4"
    else:
        layout = "byte"
    errors, fits = list[UsageError](), list[StoredLayer]()
    for scheme in settings.schemes_of(layer) or [Scheme()]:
        try:
            fits.append(LAYOUTS[layout][1](replace(layer, layout=layout, scheme=scheme)))
        except UsageError as error:
            errors.append(error)
    if not fits:
        raise errors[0]
    if len({fit.block for fit in fits}) > 1:
        raise layer.unreadable("no target of config.json names it, and several schemes fit")
    return fits[0]


def _in_groups(layer: StoredLayer, count: int) -> StoredLayer:
    """Return the layer with so many scales for each row. Raises UsageError if they are not as many
    as config.json states."""
    size, columns = layer.scheme.group, layer.columns
    is_whole = count > 0 and columns % count == 0
    if not size and is_whole and (count == 1 or (columns // count).bit_count() == 1):
        size = columns // count  # another size would be a guess: the last group may be short
    size = columns if size == -1 else min(size, columns)
    if size < 1 or math.ceil(columns / size) != count:
        raise layer.unreadable(f"it has {count} groups of scales for {columns} columns")
    return replace(layer, table=(layer.rows, count), block=(1, size))


def _words(layer: StoredLayer) -> StoredLayer:
    """Check AWQ, whose words go along rows, and GPTQ, whose words go along columns."""
    rows, columns = layer.rows, layer.columns
    scales = layer.expect("scales", FLOATS)
    words = layer.expect("qweight", ("I32",)).shape
    is_awq, bits = layer.layout == "awq", 4
    if not is_awq:
        bits = 32 * words[0] // columns if len(words) == 2 else 0
    if bits not in (2, 4, 8) or layer.scheme.bits not in (0, bits):
        raise layer.unreadable(f"it has codes of shape {list(words)}")
    if is_awq and rows % 8:
        raise layer.unreadable(f"its {rows} rows do not fill words of eight codes")
    groups = scales.shape[0] if scales.shape else 0
    shape = (columns, rows // 8) if is_awq else (columns * bits // 32, rows)
    layer.expect("qweight", ("I32",), shape)
    layer.expect("scales", FLOATS, (groups, rows))
    layer.expect("qzeros", ("I32",), (groups, math.ceil(rows * bits / 32)))
    has_index = layer.scheme.has_index and not is_awq
    layer.may_have("g_idx", ("I32", "I64"), (columns,), stated=has_index)
    kind = "awq" if is_awq else f"gptq-int{bits}"
    return replace(_in_groups(layer, groups), kind=kind, bits=bits, scales="scales")


def _pack(layer: StoredLayer) -> StoredLayer:
    rows, columns, scheme = layer.rows, layer.columns, layer.scheme
    packed = layer.expect("weight_packed", ("I32",)).shape
    fits = [n for n in range(2, 9) if packed[-1:] == (math.ceil(columns * n / 32),)]
    bits = scheme.bits if scheme.bits in fits or not fits else fits[0]
    if scheme.bits not in (0, bits) or not fits:
        raise layer.unreadable(f"it has codes of shape {list(packed)} for {columns} columns")
    layer.expect("weight_packed", ("I32",), (rows, math.ceil(columns * bits / 32)))
    scaled = _scaled(replace(layer, bits=bits), "weight_scale", FLOATS)
    layer.may_have("weight_shape", ("I64", "I32"), (2,))
    layer.may_have("weight_g_idx", ("I32", "I64"), (columns,), stated=scheme.has_index)
    words = (math.ceil(rows * bits / 32), scaled.table[1])
    whole = scaled.parts["weight_scale"].shape
    zeros = layer.parts.get("weight_zero_point")
    shape = words if zeros is not None and zeros.dtype == "I32" else whole
    layer.may_have("weight_zero_point", ("I32", "I8"), shape, stated=scheme.has_zeros)
    return replace(scaled, kind=f"w{bits}a16")


def _scaled(layer: StoredLayer, name: str, dtypes: Collection[str]) -> StoredLayer:
    """Return the layer with its scales, which are of the tensor, of rows, groups or blocks."""
    (rows, columns), (tall, wide) = (layer.rows, layer.columns), layer.scheme.block
    shape = layer.expect(name, dtypes).shape
    layer = replace(layer, scales=name)
    if not layer.scheme.group and math.prod(shape) == 1:
        return replace(layer, table=(1, 1), block=(rows, columns))
    if not layer.scheme.group and shape == (math.ceil(rows / tall), math.ceil(columns / wide)):
        return replace(layer, table=shape, block=(tall, wide))
    groups = shape[1] if len(shape) == 2 else 1
    layer.expect(name, dtypes, (rows, groups), *([(rows,)] if groups == 1 else []))
    return _in_groups(layer, groups)


def _byte(layer: StoredLayer) -> StoredLayer:
    weight = layer.expect("weight", BYTES, (layer.rows, layer.columns))
    kind = "int" if weight.dtype == "I8" else "float"
    if layer.scheme.type not in ("", kind):
        stated = layer.scheme.type
        raise layer.unreadable(f"its weight is {weight.dtype}, but config.json says {stated}")
    if layer.scheme.bits not in (0, 8):
        raise layer.unreadable(f"its weight is {weight.dtype}")
    name = "weight_scale_inv" if "weight_scale_inv" in layer.parts else "weight_scale"
    scaled = _scaled(layer, name, (*FLOATS, *EXPONENTS))
    shape, has_zeros = layer.parts[name].shape, layer.scheme.has_zeros
    layer.may_have("weight_zero_point", ("I8",), shape, stated=has_zeros)
    return replace(scaled, kind="w8a8" if kind == "int" else "fp8")


def _fp4(layer: StoredLayer) -> StoredLayer:
    rows, columns = layer.rows, layer.columns
    codes = layer.expect("weight_packed", ("U8",), (rows, columns // 2))
    nvidia = layer.parts.get("weight_scale", codes).dtype == "F8_E4M3"
    size = 16 if nvidia else 32
    dtypes = ("F8_E4M3",) if nvidia else EXPONENTS
    layer.expect("weight_scale", dtypes, (rows, math.ceil(columns / size)))
    if nvidia:
        layer.expect("weight_global_scale", ("F32",), (), (1,))
    if layer.scheme.group not in (0, size) or layer.scheme.bits not in (0, 4):
        raise layer.unreadable(f"its {layer.parts['weight_scale'].dtype} scales are of {size}")
    return replace(
        layer,
        kind="nvfp4" if nvidia else "mxfp4",
        bits=4,
        scales="weight_scale",
        table=(rows, math.ceil(columns / size)),
        block=(1, size),
    )


LAYOUTS: dict[str, tuple[str, Callable[[StoredLayer], StoredLayer]]] = {
    "awq": ("AWQ", _words),
    "gptq": ("GPTQ", _words),
    "pack": ("pack-quantized", _pack),
    "byte": ("codes of 8 bit", _byte),
    "fp4": ("codes of FP4", _fp4),
}
"""Layout → what messages call it, and what checks it and fills in its fields."""
