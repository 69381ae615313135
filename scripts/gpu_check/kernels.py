"""Finds on what the bits of a row depend in a decode step: in products, and in attention."""

import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

from scripts.gpu_check.rows import Row, row
from scripts.gpu_check.setting import Setting

ROWS = (8, 16, 32, 64)
WIDTHS = ((2048, 2560), (2048, 11008), (11008, 2048))
"""Inputs and outputs of a 3B model's layers."""
TYPES = ("bfloat16", "float16")
HEADS, QUERIES, WIDTH = 2, 8, 128
"""Key heads of a layer, queries that share one, and numbers of a head."""
COLUMNS = (512, 576, 1024, 2048)
PROMPT = 300
"""Columns that a row sees."""
NEW_LENGTHS = 20
BACKENDS = {-1: "none", 0: "math", 1: "flash", 2: "memory-efficient", 3: "cuDNN"}
"""Number of a kernel of attention in torch → its name."""


def products(setting: Setting) -> Iterator[Row]:
    """Whether a row depends on its place among all rows, and on their number."""
    import torch
    from torch.nn.functional import linear

    for name in TYPES:
        dtype, free, same = getattr(torch, name), set(ROWS), set(ROWS)
        for inputs, outputs in WIDTHS:
            weight = _random((outputs, inputs), dtype, setting.device) * inputs**-0.5
            x = _random((max(ROWS), inputs), dtype, setting.device)
            few = linear(x[: ROWS[0]], weight)
            for rows in ROWS:
                made = linear(x[:rows], weight)
                moved = [linear(x[:rows].roll(at, 0), weight)[at] for at in (1, rows // 2, -1)]
                free -= set() if all(torch.equal(each, made[0]) for each in moved) else {rows}
                same -= set() if torch.equal(made[0], few[0]) else {rows}
        found = f"no dependence on its place among {_numbers(free)} rows; "
        found += f"as among {ROWS[0]}: {_numbers(same)} rows"
        expected = "no dependence on its place"
        yield row(f"a row of a product, {name}", expected, found, bool(free))


def attention(setting: Setting) -> Iterator[Row]:
    """Which kernel a decode step gets, and whether a row depends on the columns and other rows."""
    import torch

    rows = max(ROWS)
    for name in TYPES:
        shapes = [(rows, HEADS, QUERIES, WIDTH), *2 * [(rows, HEADS, max(COLUMNS), WIDTH)]]
        parts = [_random(shape, getattr(torch, name), setting.device) for shape in shapes]
        mask = (torch.arange(max(COLUMNS), device=setting.device) < PROMPT).view(1, 1, 1, -1)
        mask = mask.expand(rows, 1, 1, -1)
        first = _attended(parts, mask, COLUMNS[0], rows)
        same = [c for c in COLUMNS if torch.equal(_attended(parts, mask, c, rows), first)]
        alone = torch.equal(_attended(parts, mask, COLUMNS[0], 1)[0], first[0])
        query, key, value = parts
        kernel = BACKENDS.get(int(torch._fused_sdp_choice(query, key, value, attn_mask=mask)))
        found = f"kernel {kernel}; the same with {_numbers(same)} columns; "
        found += "the same alone" if alone else "another alone"
        yield row(f"attention of a step, {name}", "the same", found, same == [*COLUMNS] and alone)


def _attended(parts: Sequence[Any], mask: Any, columns: int, rows: int) -> Any:
    """Attention of the first rows over the first columns."""
    from torch.nn.functional import scaled_dot_product_attention as attend

    query, key, value = (part[:rows] for part in parts)
    seen = mask[:rows, ..., :columns]
    return attend(query, key[:, :, :columns], value[:, :, :columns], attn_mask=seen)


def lengths(setting: Setting) -> Iterator[Row]:
    """What a prompt of a new length costs besides computing."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention as attend

    def seconds(tokens: int) -> float:
        shape = (1, 16, tokens, WIDTH)
        query, key, value = (_random(shape, torch.bfloat16, setting.device) for _ in range(3))
        _wait(setting)
        began = time.perf_counter()
        attend(query, key, value, is_causal=True)
        _wait(setting)
        return time.perf_counter() - began

    seconds(400)
    new = statistics.median(seconds(401 + at) for at in range(NEW_LENGTHS))
    again = statistics.median(seconds(400 + NEW_LENGTHS) for _ in range(NEW_LENGTHS))
    found = f"{new * 1000:.2f} ms, {again * 1000:.2f} ms the second time"
    yield row("attention over a new length", "told", found, new > 0)


def _random(shape: tuple[int, ...], dtype: Any, device: str) -> Any:
    import torch

    return torch.randn(shape, dtype=torch.float32).to(device, dtype)


def _wait(setting: Setting) -> None:
    import torch

    if setting.device != "cpu":
        torch.cuda.synchronize()


def _numbers(found: Any) -> str:
    return ", ".join(map(str, sorted(found))) or "no"
