"""Finds on what the bits of a row depend in a decode step: in products, and in attention. Times
both, with the kernels that torch would prefer and without."""

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

from scripts.prove.gpu_check.halves import timed
from scripts.prove.gpu_check.rows import TINY, Row, Setting, message_of, one_line, row, skipped
from stages.process.device import device_used_bytes

ROWS = (8, 16, 32, 64)
WIDTHS = ((2048, 2560), (2048, 11008), (11008, 2048), (2048, 151936))
"""Inputs and outputs of a 3B model's layers, and of its vocabulary."""
TYPES = ("bfloat16", "float16", "float32")
STEPS = {"grouped": (2, 8, 128), "single": (16, 1, 64)}
"""Key heads of a layer, queries that share one, and numbers of a head."""
COLUMNS = (512, 576, 1024, 2048)
TINY_WIDTHS, TINY_COLUMNS = ((192, 512),), (512, 576)
"""The same for a stand-in, which computes on the CPU."""
LAYER = (11008, 2048)
"""Rows and columns of a layer that is unpacked."""
PROMPT = 300
"""Columns that a row sees."""
NEW_LENGTHS = 20
KERNELS = {-1: "none", 0: "math", 1: "flash", 2: "memory-efficient", 3: "cuDNN"}
"""Number of a kernel of attention in torch → its name."""
BACKENDS = {"memory-efficient": "EFFICIENT_ATTENTION", "cuDNN": "CUDNN_ATTENTION", "math": "MATH"}
"""Kernels that can compute a step, whose mask flash attention does not take."""


def products(setting: Setting) -> Iterator[Row]:
    """Whether a row depends on its place among all rows, and on their number; and what rows
    cost."""
    import torch
    from torch.nn.functional import linear

    for name in TYPES:
        dtype, free, same = getattr(torch, name), set(ROWS), set(ROWS)
        taken = dict.fromkeys((min(ROWS), max(ROWS)), 0.0)
        for inputs, outputs in TINY_WIDTHS if setting.size == TINY else WIDTHS:
            weight = _random((outputs, inputs), dtype, setting.device) * inputs**-0.5
            x = _random((max(ROWS), inputs), dtype, setting.device)
            few = linear(x[: ROWS[0]], weight)
            for rows in ROWS:
                made = linear(x[:rows], weight)
                moved = [linear(x[:rows].roll(at, 0), weight)[at] for at in (1, rows // 2, -1)]
                free -= set() if all(torch.equal(each, made[0]) for each in moved) else {rows}
                same -= set() if torch.equal(made[0], few[0]) else {rows}
            for rows in taken:
                taken[rows] += _ms(partial(linear, x[:rows], weight), setting)
            del weight, x
        found = f"no dependence on its place among {_numbers(free)} rows; "
        found += f"as among {ROWS[0]}: {_numbers(same)} rows; "
        found += ", ".join(f"{ms:.2f} ms of {rows}" for rows, ms in taken.items())
        expected = "no dependence on its place"
        figures = {"place_free": sorted(free), "as_few": sorted(same), "ms": taken}
        yield row(f"a row of a product, {name}", expected, found, bool(free), **figures)


class Step:
    """The attention of a decode step: queries that share a key head, and a mask of columns."""

    def __init__(self, setting: Setting, name: str, shape: str) -> None:
        import torch

        heads, queries, width = STEPS[shape]
        rows, dtype = max(ROWS), getattr(torch, name)
        self.columns: tuple[int, ...] = COLUMNS
        if setting.size == TINY:
            heads, self.columns = 1, TINY_COLUMNS
        shapes = [(rows, heads, queries, width), *2 * [(rows, heads, max(self.columns), width)]]
        self._parts = [_random(each, dtype, setting.device) for each in shapes]
        mask = (torch.arange(max(self.columns), device=setting.device) < PROMPT).view(1, 1, 1, -1)
        self._mask = mask.expand(rows, 1, 1, -1)

    def inputs(self, columns: int, rows: int) -> tuple[Any, Any, Any, Any]:
        """Return query, key, value and mask of the first rows and columns."""
        query, key, value = (part[:rows] for part in self._parts)
        mask = self._mask[:rows, ..., :columns]
        return query, key[:, :, :columns], value[:, :, :columns], mask

    def attend(self, columns: int, rows: int = max(ROWS)) -> Any:
        from torch.nn.functional import scaled_dot_product_attention

        return scaled_dot_product_attention(*self.inputs(columns, rows))

    def ms(self, setting: Setting) -> dict[int, float]:
        """Return number of columns → milliseconds."""
        return {each: _ms(partial(self.attend, each), setting) for each in self.columns}

    @property
    def kernel(self) -> str:
        """The kernel that torch chooses."""
        import torch

        query, key, value, mask = self.inputs(max(self.columns), max(ROWS))
        chosen = int(torch._fused_sdp_choice(query, key, value, attn_mask=mask))
        return KERNELS.get(chosen, str(chosen))

    def free(self) -> tuple[list[int], bool]:
        """Return with how many columns the rows are the same, and whether a row is so alone."""
        import torch

        first = self.attend(self.columns[0])
        same = [columns for columns in self.columns if torch.equal(self.attend(columns), first)]
        return same, torch.equal(self.attend(self.columns[0], 1)[0], first[0])


def attention(setting: Setting) -> Iterator[Row]:
    """Which kernel a decode step gets, and whether a row depends on the columns and other rows."""
    for name in TYPES:
        for shape in STEPS:
            step = Step(setting, name, shape)
            same, alone = step.free()
            ms = step.ms(setting)
            found = f"kernel {step.kernel}; the same with {_numbers(same)} columns; "
            found += f"{'the same' if alone else 'another'} alone; "
            found += ", ".join(f"{each:.2f} ms of {columns}" for columns, each in ms.items())
            good = same == [*step.columns] and alone
            figures = {"kernel": step.kernel, "same_columns": same, "alone": alone, "ms": ms}
            yield row(f"attention of a step, {shape}, {name}", "the same", found, good, **figures)


def backends(setting: Setting) -> Iterator[Row]:
    """The same by each kernel, and which of them torch would choose by itself on this card."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    step = Step(setting, TYPES[0], "grouped")
    order = [getattr(SDPBackend, name) for name in ("CUDNN_ATTENTION", "FLASH_ATTENTION")]
    with sdpa_kernel([*order, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH], set_priority=True):
        yield message_of("kernel of a step, if cuDNN comes first", step.kernel, kernel=step.kernel)
    for kernel, name in BACKENDS.items():
        title = f"attention of a step by {kernel}"
        try:
            with sdpa_kernel(getattr(SDPBackend, name)):
                (same, alone), ms = step.free(), step.ms(setting)[max(step.columns)]
        except RuntimeError as error:
            yield skipped(title, one_line(str(error), 80), "reported")
            continue
        found = f"the same with {_numbers(same)} columns, {'the same' if alone else 'another'} "
        found += f"alone; {ms:.2f} ms of {max(step.columns)}"
        yield message_of(title, found, same_columns=same, alone=alone, ms=ms)


def lengths(setting: Setting) -> Iterator[Row]:
    """What a new length costs besides computing, in prompts and in steps."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    for kernel, backend in (("", None), (" by cuDNN", SDPBackend.CUDNN_ATTENTION)):
        for what in ("prompt", "step"):
            name = f"attention over a new length, {what}{kernel}"
            try:
                with sdpa_kernel(backend) if backend else nullcontext():
                    yield _new_lengths(setting, name, what)
            except RuntimeError as error:
                yield skipped(name, one_line(str(error), 80), "reported")


def _new_lengths(setting: Setting, name: str, what: str) -> Row:
    import torch
    from torch.nn.functional import scaled_dot_product_attention as attend

    rows, tokens = (1, 0) if what == "prompt" else (8, 1)

    def seconds(length: int) -> float:
        shape = (rows, 16, length, 128)
        key, value = (_random(shape, torch.bfloat16, setting.device) for _ in range(2))
        query = _random((rows, 16, tokens or length, 128), torch.bfloat16, setting.device)
        _wait(setting)
        began = time.perf_counter()
        attend(query, key, value, is_causal=not tokens)
        _wait(setting)
        return time.perf_counter() - began

    def outside() -> int:
        return device_used_bytes(setting.device) - torch.cuda.memory_reserved(setting.device)

    seconds(400)
    before = outside()
    new = [seconds(401 + at) for at in range(NEW_LENGTHS)]
    taken = outside() - before
    again = statistics.median(seconds(400 + NEW_LENGTHS) for _ in range(NEW_LENGTHS))
    median, most = statistics.median(new), max(new)
    found = f"{median * 1000:.2f} ms, at most {most * 1000:.1f}, {again * 1000:.2f} the second time"
    found += f"; {taken / NEW_LENGTHS / 1024:,.0f} KiB a length outside the allocator"
    return message_of(name, found, seconds=median, most=most, again=again, bytes=taken)


def unpacking(setting: Setting) -> Iterator[Row]:
    """Whether the kernel for packed layers writes the bits of torch's operators, and what both
    cost."""
    import torch

    from stages.models.stored.codes import AGREES, codes_of, unpack, write_by_operators
    from tests.support.builders.quantized import LAYOUTS, one_layer

    torch.manual_seed(0)
    for name in LAYOUTS:
        layer, tensors = one_layer(name, (256, 256) if setting.size == TINY else LAYER)
        held = codes_of(layer, {part: each.to(setting.device) for part, each in tensors.items()})
        weight = unpack(layer, held, torch.bfloat16, torch.bfloat16)
        in_place = torch.float32 if setting.device == "cpu" else torch.bfloat16
        expected = torch.empty_like(weight, dtype=in_place)
        by_operators = partial(write_by_operators, layer, held, 0, expected)
        operators = _ms(by_operators, setting)
        both = _ms(partial(unpack, layer, held, torch.bfloat16, torch.bfloat16), setting)
        same, by_kernel = torch.equal(weight, expected.bfloat16()), any(AGREES.values())
        AGREES.clear()
        found = f"{'the same' if same else 'other'} bits, "
        found += f"{'by the kernel' if by_kernel else 'without the kernel'}: {both:.3f} ms; "
        found += f"by operators {operators:.3f}"
        good = same and (by_kernel or setting.device == "cpu")
        figures = {"ms": both, "operators_ms": operators}
        expected_words = "the same bits by the kernel"
        yield row(f"unpacking a layer, {name}", expected_words, found, good, **figures)


def _ms(call: Any, setting: Setting) -> float:
    """Return the milliseconds of a call, of several in a row."""
    times = 4

    def several() -> None:
        for _ in range(times):
            call()
        _wait(setting)

    return 1000 * timed(several) / times


def _random(shape: Sequence[int], dtype: Any, device: str) -> Any:
    import torch

    return torch.randn(shape, dtype=torch.float32, device=device).to(dtype)


def _wait(setting: Setting) -> None:
    import torch

    if setting.device != "cpu":
        torch.cuda.synchronize()


def _numbers(found: Any) -> str:
    return ", ".join(map(str, sorted(found))) or "no"
