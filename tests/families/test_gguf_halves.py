"""Language halves in llama.cpp against transformers. Needs `make gguf`, else skipped."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from artifacts.errors import UsageError
from stages.decode.chunked_prefill import chunked_prefill_matches
from stages.decode.engines.inflight.pool_shape import PoolShape
from stages.decode.engines.inflight.prefill import SharedPrefix, prefill_row
from stages.models.gguf import FAMILIES as MAPPED
from stages.models.gguf import PIECE_TOKENS, ROWS
from stages.models.halves.features import encode
from stages.models.halves.generate import generate
from tests.support.tiny_families.for_gguf import VARIANTS

pytestmark = [pytest.mark.slow, pytest.mark.gguf]

NOT_MAPPED = {"paligemma:gemma2"}
COMPARED = sorted(
    name
    for name in VARIANTS
    if name.split(":")[0] in MAPPED
    and not name.endswith((":b2", ":uneven", ":textrow"))
    and name not in NOT_MAPPED
)
WORST = 1e-5
"""Largest difference of a logit, in standard deviations of its step."""
ROUGH = 5e-3
"""The same for Gemmas: llama.cpp computes their GELU from a table in 16 bit."""
READER = ROWS
"""Sequence in which prompts are read."""
DECODED = ("gemma3:two", "paligemma", "glm4v:video", "lfm2_vl", "aya_vision", "llava:llama3")


def loaded(variant: str, folder: Path) -> tuple[Any, Any, Any]:
    """A language half in llama.cpp, the whole model, and its inputs."""
    from tests.support.tiny_families import in_gguf

    model, inputs = in_gguf.written(variant, folder)
    return in_gguf.loaded(folder), model, inputs


def context_of(variant: str, folder: Path, kind: str = "f32") -> Any:
    """A context of llama.cpp with the language half of a tiny model."""
    from stages.models.gguf.llama_context import GgufContext
    from tests.support.tiny_families.in_gguf import FILE, written

    written(variant, folder, kind)
    return GgufContext(folder / FILE, threads=1)


def test_every_mapped_family_has_a_tiny_model() -> None:
    assert {name.split(":")[0] for name in COMPARED} == MAPPED


@pytest.mark.parametrize("variant", COMPARED)
def test_a_family_has_the_logits_of_transformers(variant: str, tmp_path: Path) -> None:
    from tests.support.tiny_families.in_gguf import TOKENS, judged_in_gguf

    found = judged_in_gguf(variant, tmp_path)
    assert found.agreeing == TOKENS
    assert found.worst < (ROUGH if "gemma" in variant else WORST)


@pytest.mark.parametrize("variant", DECODED)
def test_sequences_in_slots_are_what_they_are_alone(variant: str, tmp_path: Path) -> None:
    from tests.support.tiny_families.in_gguf import judged_in_slots

    assert judged_in_slots(variant, tmp_path) == "same"


@pytest.mark.parametrize("variant", ["gemma3:windows", "lfm2_vl", "qwen2_5_vl:video"])
def test_a_prompt_after_a_shared_picture_has_the_same_bits(variant: str, tmp_path: Path) -> None:
    half, model, inputs = loaded(variant, tmp_path)
    features = encode(model, inputs)
    whole = prefill_row(half, inputs, features, max_new_tokens=2)
    shared = SharedPrefix()
    for _ in range(2):  # the second goes on from what the first left
        found = shared.prefill_from_prefix(half, "chunk", inputs, features, max_new_tokens=2)
        assert torch.equal(found.logits, whole.logits)


def test_a_picture_that_sees_itself_is_not_split(tmp_path: Path) -> None:
    half, model, inputs = loaded("gemma3:windows", tmp_path)
    assert not chunked_prefill_matches(half, inputs, encode(model, inputs))


def test_a_picture_may_be_larger_than_a_piece(tmp_path: Path) -> None:
    rows = np.random.default_rng(1).standard_normal((PIECE_TOKENS + 90, 32)).astype(np.float32)
    places = np.arange(len(rows), dtype=np.int32)[None]
    found = []
    for first in (False, True):
        context = context_of("gemma3", tmp_path / str(first))
        if first:  # the context becomes larger and keeps what it has
            context.read(rows[:20], places[:, :20])
            context.restore(3, context.state(READER), 20)
        found.append(context.read(rows, places, blocks=[(10, len(rows) - 10)]))
        if first:
            assert len(context.state(3)) > 20 * 32
        context.close()
    assert np.array_equal(found[0], found[1])


@pytest.mark.parametrize("variant", ["qwen2_5_vl", "qwen3_vl", "gemma3:windows", "lfm2_vl"])
@pytest.mark.parametrize("kind", ["f32", "q8_0"])
def test_a_prompt_that_begins_as_the_last_is_read_from_where_it_differs(
    variant: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = context_of(variant, tmp_path, kind)
    count, differs = 3 * PIECE_TOKENS + 40, 2 * PIECE_TOKENS + 30
    draw = np.random.default_rng(1)
    first = draw.standard_normal((count, context.width)).astype(np.float32)
    second = first[:-20].copy()
    second[differs:] = draw.standard_normal((count - 20 - differs, context.width))
    places = np.tile(np.arange(count, dtype=np.int32), (context.axes, 1))
    alone = context.read(second, places[:, : len(second)]), context.state(READER)
    pieces, decode = [], context._decode

    def counted(rows: np.ndarray, *more: Any) -> None:
        pieces.append(len(rows))
        decode(rows, *more)

    monkeypatch.setattr(context, "_decode", counted)
    context.read(first, places)
    found = context.read(second, places[:, : len(second)]), context.state(READER)
    assert np.array_equal(found[0], alone[0])
    assert found[1] == alone[1]
    reused = variant != "lfm2_vl"  # the state of its convolutions cannot go back
    # Either begins as the one before it.
    assert sum(pieces) == len(first) + len(second) - 4 * PIECE_TOKENS * reused


@pytest.mark.parametrize(
    ("variant", "kind"),
    [
        *(("qwen2_5_vl", kind) for kind in ("f32", "f16", "bf16", "q8_0", "q4_0")),
        *((variant, "q8_0") for variant in ("gemma3:windows", "lfm2_vl", "aya_vision")),
    ],
)
def test_a_row_has_the_same_bits_alone_and_among_others(
    variant: str, kind: str, tmp_path: Path
) -> None:
    context = context_of(variant, tmp_path, kind)
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


def test_positions_that_fall_are_refused(tmp_path: Path) -> None:
    half, model, inputs = loaded("glm4v", tmp_path)
    falling = torch.arange(inputs["input_ids"].shape[1], 0, -1)
    inputs = {**inputs, "position_ids": falling.expand(3, 1, -1)}
    with pytest.raises(UsageError, match="positions that fall"):
        generate(half, inputs, encode(model, inputs), max_new_tokens=1)


def test_a_prompt_after_one_that_failed_has_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = context_of("llava", tmp_path)
    draw, shape = np.random.default_rng(1), (PIECE_TOKENS + 90, context.width)
    rows = draw.standard_normal(shape).astype(np.float32)
    places = np.arange(len(rows), dtype=np.int32)[None]
    expected, decode = context.read(rows, places), context._decode
    context.clear(READER)
    context._before = None

    def failing(part: np.ndarray, *more: Any) -> None:
        if len(part) < PIECE_TOKENS:
            raise MemoryError
        decode(part, *more)

    monkeypatch.setattr(context, "_decode", failing)
    with pytest.raises(MemoryError):
        context.read(rows, places)
    monkeypatch.undo()
    assert np.array_equal(context.read(rows, places), expected)


def test_sequences_that_a_larger_prompt_ended_are_not_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be no room to make the cache larger, after the smaller one was freed."""
    from stages.decode.engines.inflight.gguf_pool import GgufPool

    half, model, inputs = loaded("llava", tmp_path)
    sequence = prefill_row(half, inputs, encode(model, inputs), max_new_tokens=8)
    context, token = sequence.cache.decoder.context, sequence.logits.argmax(-1)[None]
    pool = GgufPool(sequence, PoolShape(rows=8, slots=8, columns=64))
    pool.put(2, sequence, token)
    for _ in range(2):
        pool.step()
        pool.set_tokens(torch.zeros(ROWS, dtype=torch.long))

    def full(columns: int) -> Any:
        raise MemoryError

    monkeypatch.setattr(context, "_make", full)
    with pytest.raises(MemoryError):
        context.reserve(4000)
    monkeypatch.undo()
    with pytest.raises(MemoryError, match="were lost"):
        pool.step()
