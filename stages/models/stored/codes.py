"""Brings the codes of a stored layer into one form, and computes its weight from them.

In that form, a row of codes belongs to a row of the weight: one code in a byte, or two of 4 bit
with the even column in the low half. Scales keep the file's type and become [rows, groups] or a
table of blocks. The weight is computed in 32 bit, piece by piece, and rounded once to the type that
the checkpoint states. So it is bit-identical whether a layer is unpacked when it is loaded or at
each call, and in 32 bit or, on a GPU, in 16.

`PackedLinear` keeps its weight packed in memory, and unpacks it at each call.
"""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch

from stages.models.shards.layout import DTYPES
from stages.models.stored.layouts import StoredLayer

AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight columns is in each half byte of an AWQ word, the lowest first."""
CPU_ROWS = 64
"""Least number of rows that a CPU unpacks at once. Few stay in its caches: 21 ms instead of 84 for
a layer of 3,584 x 3,584."""
CPU_BYTES, GPU_BYTES = 1 << 20, 32 << 20
"""Bytes of the 32-bit copy of the rows that are unpacked at once: of narrow layers many rows, so
that calls of operators do not take longer than their work."""
TRIED_ROWS = 64
"""Rows by which the kernel is compared with PyTorch's operators."""
TURNED_WORDS = 64
"""Words of eight rows that are turned at once while AWQ codes are read."""

AGREES: dict[tuple[Any, ...], bool] = {}
"""Shape of a layer, types and target type → whether the kernel wrote the same bits."""
logger = logging.getLogger(__name__)


class Codes(NamedTuple):
    """The tensors of a layer in the common form."""

    codes: torch.Tensor
    """[rows, columns] of int8 or uint8, or [rows, columns / 2] of uint8. FP8 is held as uint8, so
    that no code takes it for the type in which the model computes."""
    scales: torch.Tensor
    """[rows, groups], or a table of blocks. Of type uint8: exponents of 2, plus 127."""
    zeros: torch.Tensor | None = None
    """Zero of each scale; None: of unsigned codes the middle, of others 0."""
    group_of: torch.Tensor | None = None
    """Group of each column; None: groups follow one another."""
    divisor: torch.Tensor | None = None
    """What all scales are divided by."""


def codes_of(layer: StoredLayer, tensors: Mapping[str, torch.Tensor]) -> Codes:
    """Return the common form of a layer's tensors, by local name."""
    return READERS[layer.layout](layer, tensors)


def meta_codes(layer: StoredLayer) -> Codes:
    """Return the common form without data, as it is in memory while the layer is packed."""
    parts = layer.parts
    code = torch.int8 if layer.main.dtype == "I8" else torch.uint8
    width = layer.columns // (1 + layer.pairs)
    scale_type = DTYPES.get(parts[layer.scales].dtype, torch.uint8)
    zero_type = torch.int8 if layer.layout == "byte" else torch.uint8
    divisor = "weight_global_scale" in parts
    empty = partial(torch.empty, device="meta")
    return Codes(
        codes=empty(layer.rows, width, dtype=code),
        scales=empty(layer.table, dtype=scale_type),
        zeros=empty(layer.table, dtype=zero_type) if layer.has_zeros else None,
        group_of=empty(layer.columns, dtype=torch.int32) if layer.has_index else None,
        divisor=empty(1, dtype=torch.float32) if divisor else None,
    )


def is_in_order(index: torch.Tensor, size: int) -> bool:
    """Return whether groups of this many columns follow one another, so that no index is needed."""
    columns = torch.arange(len(index), device=index.device)
    return torch.equal(index.long(), columns // size)


def _octets(words: torch.Tensor) -> torch.Tensor:
    """Return each row of int32 words as bytes."""
    flat = words.contiguous().reshape(-1)  # strides of one column are of any size otherwise
    return flat.view(torch.uint8).reshape(len(words), -1)


def _numbers(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Return the first numbers of each row of int32 words, one in a byte. The lowest bits of a row
    come first, and a number may cross words."""
    octets = _octets(packed)
    if bits == 8:
        return octets[:, :count]
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    weights = (1 << torch.arange(bits, device=packed.device)).to(torch.uint8)
    numbers = torch.empty(len(packed), count, dtype=torch.uint8, device=packed.device)
    for rows, into in zip(octets.split(CPU_ROWS), numbers.split(CPU_ROWS), strict=True):
        ones = ((rows.unsqueeze(-1) >> shifts) & 1).flatten(1)[:, : count * bits]
        into.copy_((ones.unflatten(1, (count, bits)) * weights).sum(-1, dtype=torch.uint8))
    return numbers


def _rows_of_words(layer: StoredLayer, words: torch.Tensor) -> torch.Tensor:
    """Return the codes of words that go along columns."""
    if layer.pairs or layer.bits == 8:
        return _octets(words)[:, : layer.columns * layer.bits // 8]
    return _numbers(words, layer.bits, layer.columns)


def _awq(layer: StoredLayer, tensors: Mapping[str, torch.Tensor]) -> Codes:
    words = tensors["qweight"]
    count, width = words.shape[1], layer.columns // (1 + layer.pairs)
    codes = torch.empty(count, 8, width, dtype=torch.uint8, device=words.device)
    for at in range(0, count, TURNED_WORDS):
        into = codes[at : at + TURNED_WORDS]
        octets = _octets(words[:, at : at + TURNED_WORDS]).t().contiguous()
        halves = _halves(octets, paired=layer.pairs)
        for place, half in enumerate(halves):
            rows = half.unflatten(0, (len(into), 4))
            for octet in range(4):
                into[:, AWQ_COLUMNS[2 * octet + place]] = rows[:, octet]
    zeros = _numbers(tensors["qzeros"], 4, layer.rows)
    order = torch.tensor([AWQ_COLUMNS.index(n) for n in range(8)], device=words.device)
    zeros = zeros.unflatten(1, (-1, 8))[:, :, order].flatten(1)
    return Codes(codes.flatten(0, 1), tensors["scales"].t().contiguous(), zeros.t().contiguous())


def _halves(octets: torch.Tensor, *, paired: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the low and the high half of each byte, for pairs of columns in one byte."""
    if not paired:
        return octets & 15, octets >> 4
    both = octets.view(torch.int16)
    low = ((both & 0x0F) | ((both >> 4) & 0xF0)).to(torch.uint8)
    return low, (((both >> 4) & 0x0F) | ((both >> 8) & 0xF0)).to(torch.uint8)


def _gptq(layer: StoredLayer, tensors: Mapping[str, torch.Tensor]) -> Codes:
    codes = _rows_of_words(layer, tensors["qweight"].t())
    zeros = _numbers(tensors["qzeros"], layer.bits, layer.rows)
    if not _is_v2(layer, zeros):  # stored less one; of zero 0 that is all ones, so it wraps
        zeros = (zeros + 1) & (2**layer.bits - 1)
    scales, zeros = tensors["scales"].t().contiguous(), zeros.t().contiguous()
    return Codes(codes, scales, zeros, _group_of(layer, tensors.get("g_idx")))


def _is_v2(layer: StoredLayer, zeros: torch.Tensor) -> bool:
    """Return whether GPTQ's zeros are stored as they are. Those of symmetric codes say it
    themselves; config.json of some files does not. Raises UsageError for zeros of neither."""
    if layer.scheme.v2 is not None:
        return layer.scheme.v2
    low, high = int(zeros.min()), int(zeros.max())
    if low != high or layer.middle - low not in (0, 1):
        versions = f"{layer.middle - 1} (version 1) or {layer.middle} (version 2)"
        raise layer.unreadable(
            f"config.json says sym, so all its zeros are {versions}, but they are {low} to {high}"
        )
    return low == layer.middle


def _group_of(layer: StoredLayer, index: torch.Tensor | None) -> torch.Tensor | None:
    """Return the group of each column; None if groups follow one another. Raises EnvironmentFault
    for groups that have no scale."""
    if index is None or is_in_order(index, layer.block[1]):
        return None
    if int(index.min()) < 0 or int(index.max()) >= layer.table[1]:
        raise layer.damaged(f"its g_idx names groups other than 0 to {layer.table[1] - 1}")
    return index.int()


def _pack(layer: StoredLayer, tensors: Mapping[str, torch.Tensor]) -> Codes:
    codes, zeros = _rows_of_words(layer, tensors["weight_packed"]), None
    stored = tensors.get("weight_zero_point")
    if stored is not None and stored.dtype == torch.int32:
        zeros = _numbers(stored.t(), layer.bits, layer.rows).t().contiguous()
    elif stored is not None:  # older files
        zeros = (stored.to(torch.int16) + 2 ** (layer.bits - 1)).to(torch.uint8)
    scales = tensors["weight_scale"].reshape(layer.table)
    return Codes(codes, scales, zeros, _group_of(layer, tensors.get("weight_g_idx")))


def _byte(layer: StoredLayer, tensors: Mapping[str, torch.Tensor]) -> Codes:
    zeros = tensors.get("weight_zero_point")
    scales, codes = tensors[layer.scales].reshape(layer.table), tensors["weight"]
    codes = codes if codes.dtype == torch.int8 else codes.view(torch.uint8)
    return Codes(codes, scales, None if zeros is None else zeros.reshape(layer.table))


def _fp4(layer: StoredLayer, tensors: Mapping[str, torch.Tensor]) -> Codes:
    divisor = tensors.get("weight_global_scale")
    codes, scales = tensors["weight_packed"], tensors["weight_scale"]
    return Codes(codes, scales, divisor=None if divisor is None else divisor.reshape(1))


READERS: dict[str, Callable[[StoredLayer, Mapping[str, torch.Tensor]], Codes]] = {
    "awq": _awq,
    "gptq": _gptq,
    "pack": _pack,
    "byte": _byte,
    "fp4": _fp4,
}
"""Layout → what brings its tensors into the common form."""


def unpack(
    layer: StoredLayer, held: Codes, stated: torch.dtype, dtype: torch.dtype
) -> torch.Tensor:
    """Return the weight in `dtype`, rounded to `stated` before.

    In 32 bit, the memory of some rows is used again for the next. On a GPU, rows in 16 bit are
    computed where they go, which moves less than half of the bytes: codes and their differences
    from zeros are exact in 16 bit, and a product is rounded once. A kernel does it in one pass
    where it writes the same bits."""
    weights = torch.empty(layer.rows, layer.columns, dtype=dtype, device=held.codes.device)
    on_cpu = weights.device.type == "cpu"
    in_place = not on_cpu and stated == dtype != torch.float32
    if in_place and _kernel_agrees(layer, held, dtype):
        write_by_kernel(layer, held, weights)
        return weights
    step = (CPU_BYTES if on_cpu else GPU_BYTES) // (4 * layer.columns)
    if in_place and layer.layout != "fp4":
        step *= 8  # what is beside the result has half a byte a code
    step = max(1, min(max(step, CPU_ROWS * on_cpu), layer.rows))
    if not in_place:
        work = torch.empty(step, layer.columns, dtype=torch.float32, device=weights.device)
    for at in range(0, layer.rows, step):
        into = weights[at : at + step]
        rows = into if in_place else work[: len(into)]
        write_by_operators(layer, held, at, rows)
        if not in_place:
            into.copy_(rows if stated in (dtype, torch.float32) else rows.to(stated))
    return weights


def _kernel_agrees(layer: StoredLayer, held: Codes, dtype: torch.dtype) -> bool:
    """Return whether the kernel writes the bits of PyTorch's operators. The first rows of the first
    layer of a shape say so, unless a CUDA graph is being captured."""
    if not held.codes.is_cuda:
        return False
    beside = tuple(None if part is None else part.dtype for part in held)
    shape = (layer.kind, layer.block, layer.table[1], layer.columns, beside, dtype)
    if shape not in AGREES and not torch.cuda.is_current_stream_capturing():
        rows = min(layer.rows, TRIED_ROWS)
        tried = torch.empty(2, rows, layer.columns, dtype=dtype, device=held.codes.device)
        write_by_operators(layer, held, 0, tried[0])
        try:
            write_by_kernel(layer, held, tried[1])
            AGREES[shape] = torch.equal(*tried.view(torch.int16))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # no Triton, no C compiler, a cache folder that is read-only
            logger.info("%s is unpacked without a kernel: %s", layer.kind, error)
            AGREES[shape] = False
    return AGREES.get(shape, False)


def write_by_kernel(layer: StoredLayer, held: Codes, weight: torch.Tensor) -> None:
    """Write the first rows of the weight, as many as `weight` has, in 16 bit on a GPU."""
    from stages.models.stored.kernel import write_weight

    scales = _scales(held.scales, held.divisor).contiguous()
    zeros = None if held.zeros is None else held.zeros.contiguous()
    write_weight(layer, held.codes.contiguous(), scales, zeros, held.group_of, weight)


def write_by_operators(layer: StoredLayer, held: Codes, at: int, rows: torch.Tensor) -> None:
    """Write the weight's rows from the row `at` on, in 32 bit or, on a GPU, in 16."""
    tall, wide = layer.block
    even = layer.table[1] * wide == layer.columns and held.group_of is None
    some: slice | torch.Tensor = slice(at, at + len(rows))
    _decoded(layer, held.codes[some], rows)
    view = rows.unflatten(1, (layer.table[1], wide)) if even else rows
    if tall > 1:
        some = torch.arange(at, at + len(rows), device=rows.device) // tall
    if held.zeros is not None:
        zeros = held.zeros[some]
        view.sub_(zeros.unsqueeze(-1) if even else _along(layer, held, zeros))
    elif layer.middle:
        view.sub_(layer.middle)
    scales = _scales(held.scales[some], held.divisor)
    view.mul_(scales.unsqueeze(-1) if even else _along(layer, held, scales))


def _along(layer: StoredLayer, held: Codes, table: torch.Tensor) -> torch.Tensor:
    """Return what a table of groups says of each column."""
    if held.group_of is not None:
        return table.float().index_select(1, held.group_of)  # on a CPU, 7 times as fast
    return table.repeat_interleave(layer.block[1], 1)[:, : layer.columns]


def _scales(scales: torch.Tensor, divisor: torch.Tensor | None) -> torch.Tensor:
    """Return scales that a 32-bit number can be multiplied with."""
    if scales.dtype == torch.uint8:
        return torch.exp2(scales.float() - 127)
    return scales if divisor is None else scales.float() / divisor


def _decoded(layer: StoredLayer, codes: torch.Tensor, into: torch.Tensor) -> torch.Tensor:
    """Write some rows of codes as numbers."""
    if layer.main.dtype == "F8_E4M3":
        if codes.device.type != "cpu":
            return into.copy_(codes.view(torch.float8_e4m3fn))
        # A CPU converts one at a time; looking them up takes a fifth.
        every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
        torch.index_select(every, 0, codes.flatten().int(), out=into.view(-1))
        return into
    if not layer.pairs:
        return into.copy_(codes)
    if layer.layout != "fp4":
        both = into.unflatten(1, (-1, 2))
        # Not with `out`: CUDA has no bitwise kernel that writes numbers of another type.
        both[..., 0].copy_(codes & 15)
        both[..., 1].copy_(codes >> 4)
        return into
    # Sign, exponent and mantissa go where fp16 has them, whose exponents are 14 less.
    bits = torch.empty(into.shape, dtype=torch.int16, device=into.device)
    both, codes = bits.unflatten(1, (-1, 2)), codes.to(torch.int16)
    torch.bitwise_left_shift(codes, 12, out=both[..., 0])
    torch.bitwise_left_shift(codes, 8, out=both[..., 1])
    bits.bitwise_right_shift_(3).bitwise_and_(0x8E00 - 0x10000)
    return into.copy_(bits.view(torch.float16)).mul_(2.0**14)


BESIDE = ("scales", "zeros", "group_of", "divisor")
"""Fields of the codes that are buffers beside the weight."""
