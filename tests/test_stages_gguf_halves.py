"""Language halves and tokenizers in llama.cpp against transformers. Needs `make gguf`, else
skipped."""

import json
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer

from artifacts.errors import UsageError
from penstock_demo import CHECKPOINT
from stages.decode.engines.inflight.pool_shape import PoolShape
from stages.decode.engines.inflight.prefill import SharedPrefix, prefill_row
from stages.decode.generate_kwargs import chunked_prefill_matches
from stages.models.gguf import FAMILIES as MAPPED
from stages.models.gguf import FILE, MANIFEST, PIECE_TOKENS, ROWS
from stages.models.halves.features import encode
from stages.models.halves.offload import generate
from tests.support.tiny_families.for_gguf import VARIANTS
from tests.support.tiny_tokenizers import KINDS, TEKKEN, byte_level, lines, save, split

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


def context_of(variant: str, folder: Path, kind: str = "f32") -> Any:
    """A context of llama.cpp with the exported half of a tiny model."""
    from stages.models.gguf.llama_context import GgufContext
    from tests.support.tiny_families.in_gguf import exported

    exported(variant, folder, f"gguf-{kind}")
    return GgufContext(folder / "gguf" / FILE, threads=1)


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
    from tests.support.tiny_families.in_gguf import exported, loaded

    model, inputs = exported(variant, tmp_path)
    half, features = loaded(tmp_path), encode(model, inputs)
    whole = prefill_row(half, inputs, features, max_new_tokens=2)
    shared = SharedPrefix()
    for _ in range(2):  # the second goes on from what the first left
        found = shared.prefill_from_prefix(half, "chunk", inputs, features, max_new_tokens=2)
        assert torch.equal(found.logits, whole.logits)


def test_a_picture_that_sees_itself_is_not_split(tmp_path: Path) -> None:
    from tests.support.tiny_families.in_gguf import exported, loaded

    model, inputs = exported("gemma3:windows", tmp_path)
    assert not chunked_prefill_matches(loaded(tmp_path), inputs, encode(model, inputs))


def test_a_picture_may_be_larger_than_a_piece(tmp_path: Path) -> None:
    from stages.models.gguf.llama_context import GgufContext
    from tests.support.tiny_families.in_gguf import exported

    exported("gemma3", tmp_path)
    rows = np.random.default_rng(1).standard_normal((PIECE_TOKENS + 90, 32)).astype(np.float32)
    places = np.arange(len(rows), dtype=np.int32)[None]
    found = []
    for first in (False, True):
        context = GgufContext(tmp_path / "gguf" / FILE, threads=1)
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
    from tests.support.tiny_families.in_gguf import exported, loaded

    model, inputs = exported("glm4v", tmp_path)
    half, count = loaded(tmp_path), inputs["input_ids"].shape[1]
    falling = torch.arange(count, 0, -1).expand(3, 1, -1)
    inputs = {**inputs, "position_ids": falling}
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
    from tests.support.tiny_families.in_gguf import exported, loaded

    model, inputs = exported("llava", tmp_path)
    sequence = prefill_row(loaded(tmp_path), inputs, encode(model, inputs), max_new_tokens=8)
    context, token = sequence.cache.decoder.context, sequence.logits.argmax(-1)[None]
    pool = GgufPool(sequence, PoolShape(rows=8, slots=8, columns=64))
    pool.put(2, sequence, token)
    pool.step()
    pool.set_tokens(torch.zeros(ROWS, dtype=torch.long))
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


def found_in(folder: Path, work: Path) -> Any:
    """The tokenizer of a folder as GGUF states it, or why it is not written."""
    from stages.export.gguf import tokenizer_of

    rows = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size() + 7
    found = tokenizer_of(folder, rows, work)
    assert list(work.glob("*.gguf")) == []
    return found


def differing(folder: Path, found: Any, work: Path) -> list[str]:
    """Of 1,000 lines those that llama.cpp tokenizes otherwise than the checkpoint."""
    from stages.export.gguf import tokenized

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    # llama.cpp does not compose characters.
    texts = [normalize("NFC", line) for line in lines(1000, 7, *added)]
    return [
        text
        for ends in (False, True)
        for text, ids in zip(texts, tokenized(found, work, texts, ends), strict=True)
        if ids != tokenizer.encode(text, add_special_tokens=ends).ids
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_tokenizes_lines_as_the_checkpoint_does(kind: str, tmp_path: Path) -> None:
    folder = save(KINDS[kind](), tmp_path / "model")
    found = found_in(folder, tmp_path)
    by_bytes = kind not in ("llama", "gemma")
    assert (found.model, found.pre) == (("gpt2", kind) if by_bytes else ("llama", "default"))
    assert differing(folder, found, tmp_path) == []


def test_llama_cpp_tokenizes_lines_as_the_demo_does(tmp_path: Path) -> None:
    found = found_in(CHECKPOINT, tmp_path)
    assert found.pre == "gpt-2"
    assert found.special.chat_template == (CHECKPOINT / "chat_template.jinja").read_text()
    assert differing(CHECKPOINT, found, tmp_path) == []


@pytest.mark.parametrize("pattern", [TEKKEN, r"\w+|\W"])
def test_what_splits_text_in_unknown_ways_fails(pattern: str, tmp_path: Path) -> None:
    folder = save(byte_level(split(pattern)), tmp_path / "model")
    assert found_in(folder, tmp_path) == "what splits text into words is not mapped"


def test_added_tokens_that_llama_cpp_finds_otherwise_fail(tmp_path: Path) -> None:
    made = byte_level()
    made.add_tokens([AddedToken("<wide>", lstrip=True)])
    why = found_in(save(made, tmp_path / "model"), tmp_path)
    assert "otherwise" in why


def test_a_folder_without_a_tokenizer_fails(tmp_path: Path) -> None:
    from stages.export.gguf import tokenizer_of

    assert tokenizer_of(tmp_path, 8, tmp_path) == "there is no tokenizer.json"


def test_an_exported_file_has_the_tokenizer_and_decodes_the_same(tmp_path: Path) -> None:
    import gguf

    from tests.support.tiny_families.in_gguf import TOKENS, judged_in_gguf

    save(KINDS["smollm"](), tmp_path / "whole")
    found = judged_in_gguf("llava:words", tmp_path)
    assert found.agreeing == TOKENS
    manifest = json.loads((tmp_path / "gguf" / MANIFEST).read_text())
    assert manifest["penstock_only"] == ""
    stated = gguf.GGUFReader(tmp_path / "gguf" / FILE).fields
    assert stated["tokenizer.ggml.pre"].contents() == "smollm"
    assert stated["tokenizer.chat_template"].contents() == "{{ messages }}"
