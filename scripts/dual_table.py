"""Makes the part of docs/models.md on dual encoders: of every class by which transformers labels
pictures, whether its halves make what the whole makes. `make models` runs it last.
"""

import tempfile
from pathlib import Path
from typing import Any

from benchmarks._common import cells

HEAD = """
## Dual encoders

[`penstock embed`](embed.md) takes models that turn an image and a text into comparable vectors.
They are the classes that transformers has for zero-shot image classification. A tiny model of each
is saved, its halves are loaded alone, and the vectors of images go through the form of the store.
The logits are those of the model's own `forward` over stored vectors. *exact*: bit-identical to the
whole model, in 32 bit, and in bf16 where that column says so.

**{exact} of {all} classes exact in 32 bit, {short} of them in bf16; {refused} refused.**

| type | class | images | texts | logits | in bf16 | vision half | text half | note |
|---|---|---|---|---|---|---|---|---|
"""
LEAST = 10
"""Classes that must be exact."""


def section() -> tuple[str, bool]:
    """The text of the part, and whether enough classes are exact."""
    import torch

    from tests.support.dual_encoders import judge, names

    def judged(name: str, dtype: torch.dtype) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            return judge(name, Path(folder), dtype)

    pairs = [(judged(n, torch.float32), judged(n, torch.bfloat16)) for n in sorted(names())]
    exact = sum(whole.exact for whole, _ in pairs)
    head = HEAD.format(
        exact=exact,
        all=len(pairs),
        short=sum(short.exact for _, short in pairs),
        refused=sum(bool(whole.refused) for whole, _ in pairs),
    )
    return head + "".join(line(*pair) + "\n" for pair in pairs), exact >= LEAST


def line(whole: Any, short: Any) -> str:
    """A row of the table."""
    name = [whole.name, whole.class_name]
    if whole.refused:
        return cells([*name, "refused", *[""] * 5, whole.refused])
    shares = [f"{100 * share:.0f} %" for share in whole.shares]
    notes = [f"in bf16 {of}: the whole model {said}" for of, said in short.results.items()
             if said.startswith("fails")]  # fmt: skip
    kinds = {said.partition(":")[0] for said in short.results.values()}
    each = ", ".join(f"{of} {said.partition(':')[0]}" for of, said in short.results.items())
    in_short = "exact" if kinds == {"exact"} else each
    return cells([*name, *whole.results.values(), in_short, *shares, "; ".join(notes)])
