"""Language halves in llama.cpp against transformers. Needs `make gguf`, else skipped."""

from pathlib import Path

import numpy as np
import pytest

from artifacts.errors import UsageError
from stages.models.gguf import FILE, ROWS
from stages.models.gguf.mapping import FAMILIES as MAPPED
from tests.support.tiny_families import FAMILIES

pytestmark = [pytest.mark.slow, pytest.mark.gguf]

VARIANTS = sorted(
    name
    for name in FAMILIES
    if name.split(":")[0] in MAPPED and not name.endswith((":b2", ":uneven", ":textrow"))
)
WORST = 1e-5
"""Largest difference of a logit, in standard deviations of its step."""


def test_every_mapped_family_has_a_tiny_model() -> None:
    assert {name.split(":")[0] for name in VARIANTS} == MAPPED


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_family_has_the_logits_of_transformers(variant: str, tmp_path: Path) -> None:
    from tests.support.tiny_families.in_gguf import TOKENS, judged_in_gguf

    found = judged_in_gguf(variant, tmp_path)
    assert found.agreeing == TOKENS
    assert found.worst < WORST


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0", "q4_0"])
def test_a_row_has_the_same_bits_alone_and_among_others(kind: str, tmp_path: Path) -> None:
    from stages.models.gguf.context import READER, GgufContext
    from tests.support.tiny_families.in_gguf import exported

    exported("qwen2_5_vl", tmp_path, f"gguf-{kind}")
    context = GgufContext(tmp_path / "gguf" / FILE, threads=1)
    draw = np.random.default_rng(1)
    prompts = [
        draw.standard_normal((40 + 70 * at, context.width)).astype(np.float32) for at in range(ROWS)
    ]

    def placed(first: int, count: int) -> np.ndarray:
        return np.tile(np.arange(first, first + count, dtype=np.int32), (context.axes, 1))

    states = []
    for prompt in prompts:
        context.read(prompt, placed(0, len(prompt)))
        states.append(context.state(READER))
    step = draw.standard_normal((ROWS, context.width)).astype(np.float32)

    def logits_of(rows: list[int]) -> np.ndarray:
        positions = np.zeros((context.axes, ROWS), np.int32)
        found = []
        for row in rows:
            context.restore(row, states[row], len(prompts[row]))
        for more in range(3):
            for row in rows:
                positions[:, row] = len(prompts[row]) + more
            found.append(context.step(step, positions, rows)[rows])
        for row in rows:
            context.clear(row)
        return np.stack(found, axis=1)

    together = logits_of(list(range(ROWS)))
    for row in range(ROWS):
        assert np.array_equal(logits_of([row])[0], together[row])
    context.close()


def test_a_mapped_family_in_another_form_is_refused(tmp_path: Path) -> None:
    from tests.support.tiny_families.in_gguf import judged_in_gguf

    with pytest.raises(UsageError, match="cannot be written as GGUF"):
        judged_in_gguf("gemma3", tmp_path)
