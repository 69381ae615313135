"""The mapping of language halves to GGUF, headers of GGUF files, and what is said without
llama.cpp."""

import random
import struct
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from artifacts.errors import MissingPackage, UsageError
from artifacts.packages import require_extra
from stages.decode.engines import ENGINES, accepted_by, engines_for, gguf_engine
from stages.decode.engines.slot_load import RESERVE_BYTES, SlotLoad, compute_bytes, slot_terms
from stages.models.cache_memory import LayerMemory, RowMemory
from stages.models.gguf import FAMILIES as MAPPED
from stages.models.gguf import PIECE_TOKENS, ROWS, GgufShape
from stages.models.gguf import header as library
from stages.models.gguf.header import read_header
from stages.models.gguf.mapping import mapping_of
from stages.models.gguf.masks import blocks_of, pieces_of
from stages.models.halves.model_class import load_config
from tests.support.gguf_bytes import TENSORS, VALUES, Tensor, gguf_bytes, mutations, text
from tests.support.pipeline import ROOT
from tests.support.tiny_families import FAMILIES


def config_of(variant: str) -> Any:
    return FAMILIES[variant]()[0].config


@pytest.mark.parametrize(
    ("variant", "texts"),
    [
        ("gemma4", "gemma4 with a gemma4_text decoder"),
        ("paligemma:gemma2", "paligemma with a gemma2 decoder"),
        ("qwen3_vl_moe", "qwen3_vl_moe with a qwen3_vl_moe_text decoder"),
        ("exaone4_5", "exaone4_5 with a exaone4 decoder"),
    ],
)
def test_a_family_that_no_test_has_compared_is_refused_by_name(variant: str, texts: str) -> None:
    with pytest.raises(UsageError) as raised:
        mapping_of(config_of(variant), "MODEL")
    assert raised.value.message == f"MODEL is not mapped to GGUF: {texts}"


LLAVA = "llava_onevision"
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}
PARTIAL = {"rope_theta": 1e4, "partial_rotary_factor": 0.5}


@pytest.mark.parametrize(
    ("variant", "name", "value", "texts"),
    [
        (LLAVA, "rope_parameters", YARN, "its rotary positions are scaled (yarn)"),
        (LLAVA, "rope_parameters", PARTIAL, "only a part of its heads is rotated"),
        (LLAVA, "hidden_act", "gelu", "its MLP uses gelu"),
        (LLAVA, "layer_types", ["full_attention", "sliding_attention"], "sliding window"),
        ("gemma3", "layer_types", ["linear_attention"] * 2, "unknown kinds (linear_attention)"),
        ("gemma3", "query_pre_attn_scalar", 16, "its attention is scaled by 16 dimensions"),
        ("gemma3", "final_logit_softcapping", 30.0, "its logits are capped"),
        ("gemma3", "use_bidirectional_attention", True, "all of its tokens see later ones"),
    ],
)
def test_a_decoder_that_computes_otherwise_is_refused(
    variant: str, name: str, value: Any, texts: str
) -> None:
    config = config_of(variant)
    setattr(config.text_config, name, value)
    with pytest.raises(UsageError, match="is not mapped to GGUF") as raised:
        mapping_of(config, "MODEL")
    assert texts in raised.value.message


@pytest.mark.slow
def test_every_family_is_mapped_or_refused_by_name() -> None:
    """tests/families/test_gguf_halves.py compares those that are mapped with transformers."""
    mapped = set()
    for name, build in FAMILIES.items():
        config = build()[0].config
        try:
            mapping_of(config, name)
            mapped.add(config.model_type)
        except UsageError as error:
            texts = f"{name} is not mapped to GGUF: {config.model_type} with a "
            assert error.message.startswith(texts)
    assert mapped == MAPPED


def seen(*ends: int, columns: int = 0) -> torch.Tensor:
    """A mask in which each token sees the first `ends`."""
    return (torch.arange(columns or len(ends)) < torch.tensor(ends)[:, None])[None, None]


@pytest.mark.parametrize(
    ("mask", "after", "blocks"),
    [
        (None, 0, []),
        (torch.ones(1, 4), 0, []),
        (seen(1, 2, 3, 4), 0, []),
        (seen(4, 4, 4, 4), 0, [(0, 4)]),
        (seen(1, 3, 3, 4), 0, [(1, 3)]),
        (seen(3, 4, 6, 6, columns=6), 2, [(2, 4)]),
        ({"full_attention": seen(1, 3, 3, 4), "sliding_attention": None}, 0, [(1, 3)]),
    ],
)
def test_tokens_that_see_later_ones_are_found_in_the_mask(
    mask: Any, after: int, blocks: list[tuple[int, int]]
) -> None:
    assert blocks_of(mask, 4, after, 0, causal=True) == blocks


def test_a_prompt_without_a_mask_is_read_as_the_model_reads_it() -> None:
    assert blocks_of(None, 4, 0, 0, causal=False) == [(0, 4)]
    assert blocks_of(None, 1, 3, 0, causal=False) == []


def test_windows_are_compared_with_what_llama_cpp_computes() -> None:
    whole = seen(1, 3, 3, 4)
    near = whole & (torch.arange(4) > torch.arange(4)[:, None] - 2)
    masks = {"full_attention": whole, "sliding_attention": near}
    assert blocks_of(masks, 4, 0, 2, causal=True) == [(1, 3)]
    with pytest.raises(UsageError, match="another window"):
        blocks_of(masks, 4, 0, 3, causal=True)


@pytest.mark.parametrize("mask", [seen(1, 1, 3, 4), seen(2, 3, 3, 4), torch.tensor([[0, 1, 1, 1]])])
def test_other_masks_fail(mask: torch.Tensor) -> None:
    with pytest.raises(UsageError, match="which is not mapped to"):
        blocks_of(mask, 4, 0, 0, causal=True)


def test_a_block_is_a_piece_of_its_own() -> None:
    first = PIECE_TOKENS + 90
    assert list(pieces_of(first + 600, [(first, first + 10), (first + 10, first + 510)])) == [
        (0, PIECE_TOKENS, True),
        (PIECE_TOKENS, first, True),
        (first, first + 10, False),
        (first + 10, first + 510, False),
        (first + 510, first + 600, True),
    ]


def test_the_demo_has_an_empty_section_for_the_order_of_tokens() -> None:
    from penstock_demo import CHECKPOINT

    found = mapping_of(load_config(CHECKPOINT, False), "demo")
    assert (found.architecture, found.deepstack) == ("paddleocr", 0)


def test_the_engine_is_never_chosen_for_another_checkpoint() -> None:
    assert engines_for("gguf") == (ENGINES["gguf"],)
    choices = ("auto", "gguf", "inflight", "transformers")
    assert [gguf_engine(choice) for choice in choices] == ["gguf", "gguf", "", ""]
    for choice in ("auto", "inflight", "transformers"):
        assert ENGINES["gguf"] not in accepted_by(choice)


def test_missing_packages_are_named_with_the_command_that_installs_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingPackage, match="the package gguf, which is not installed") as raised:
        require_extra("gguf", "model")
    assert "pip install 'penstock[gguf]'" in str(raised.value.hint)


def test_a_binding_that_cannot_be_loaded_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library.BINDING, None)
    library.library.cache_clear()
    with pytest.raises(MissingPackage, match=r"the package (gguf|llama-cpp-python), which is not"):
        library.library()


@pytest.mark.parametrize(("exact", "number"), [(True, 4), (False, 2)])
def test_a_plan_counts_every_sequence_used_or_not(exact: bool, number: int) -> None:
    memory = RowMemory(kept=(LayerMemory(kind="DynamicLayer", layers=2, token_bytes=64),), words=10)
    shape = GgufShape(width=16, inner=64, heads=4, whole=False, exact=exact)

    sizes: Any = {"number_bytes": 4, "tokens": 200, "new_tokens": 100, "prompt_bytes": 1000}
    load = SlotLoad(
        engine=ENGINES["gguf"], memory=memory, slots=8, device="cpu", gguf=shape, **sizes
    )
    terms = list(slot_terms(load))
    assert terms == list(slot_terms(replace(load, slots=1)))
    token = 2 * 64 * number // 2  # two layers, stated for 16 bit
    assert [term.bytes for term in terms] == [
        (ROWS + 1) * 512 * token,
        2 * 200 * token,
        compute_bytes(shape, 512, PIECE_TOKENS),
        2 * 200 * 16 * 4 + 3 * (ROWS + 1) * 10 * 4 + RESERVE_BYTES,
    ]
    # Without flash attention the scores of a piece are kept: tokens x columns x heads.
    kept = PIECE_TOKENS * 512 * 4 * 4
    assert (compute_bytes(shape, 512, PIECE_TOKENS) > kept) == exact


MUTATIONS = 200
MOST_BYTES = 4 << 20
"""What reading a damaged header of some hundred bytes may take."""
UP = "blk.0.ffn_up.weight"


def read(folder: Path, content: bytes) -> Any:
    path = folder / "file.gguf"
    path.write_bytes(content)
    return read_header(path)


def test_a_valid_header_is_read(tmp_path: Path) -> None:
    header = read(tmp_path, gguf_bytes())
    assert header.architecture == "qwen2"
    assert header.values["qwen2.rope.dimension_sections"] == (2, 3, 3, 0)
    assert header.values["tokenizer.ggml.tokens"].split(b"\xff") == [b"a", b"b", b"c", b""]
    up = header.tensors[UP]
    assert (up.shape, up.bytes, up.offset) == ((64, 32), 64 * 34, 8 * 32 * 4 + 32 * 4)
    assert header.parameters == 64 * 32 + 32 + 8 * 32
    assert header.data_start % 32 == 0
    assert read(tmp_path, gguf_bytes(version=2)).tensors == header.tensors
    aligned = gguf_bytes({**VALUES, "general.alignment": 64}, alignment=64)
    assert read(tmp_path, aligned).data_start % 64 == 0


TWICE = text("general.name") + struct.pack("<I", 8) + text("x")


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (b"", "it ends within its first bytes"),
        (gguf_bytes(magic=b"GGML"), "it does not begin as GGUF files do"),
        (gguf_bytes(version=1), "version 1 of the format is not known"),
        (gguf_bytes(version=3 << 24), "version 50331648 of the format"),
        (gguf_bytes(counts=(1 << 63, 8)), "it states 9,223,372,036,854,775,808 tensors"),
        (gguf_bytes(counts=(0, 8)), "it states 0 tensors"),
        (gguf_bytes(counts=(3, 1 << 40)), "it states 1,099,511,627,776 metadata keys"),
        (gguf_bytes({**VALUES, "k": struct.pack("<IIQ", 9, 8, 1 << 50)}), "has 1,125,899,906,842"),
        (gguf_bytes({**VALUES, "k": struct.pack("<IIQ", 9, 6, 1 << 61)}), "it ends within k"),
        (gguf_bytes({**VALUES, "k": struct.pack("<IIQ", 9, 9, 1)}), "a list of the unknown type 9"),
        (gguf_bytes({**VALUES, "k": struct.pack("<I", 13)}), "k has the unknown type 13"),
        (gguf_bytes({**VALUES, "k": struct.pack("<IQ", 8, 1 << 62)}), "k is 4,611,686,018,427"),
        (gguf_bytes({**VALUES, "k": struct.pack("<IQ", 8, 1) + b"\xff"}), "k is no UTF-8 text"),
        (gguf_bytes({**VALUES, "a": struct.pack("<IB", 0, 1) + TWICE * 2}, counts=(3, 11)),
         "it has the metadata key 'general.name' twice"),
        (gguf_bytes({**VALUES, "general.alignment": 0}), "general.alignment is 0"),
        (gguf_bytes({**VALUES, "general.alignment": 48}), "general.alignment is 48"),
        (gguf_bytes({**VALUES, "general.alignment": "32"}), "general.alignment is '32'"),
        (gguf_bytes(tensors={**TENSORS, "x": Tensor((32,), offset=0)}), "x lies at byte 0 of the"),
        (gguf_bytes(tensors={**TENSORS, "x": Tensor((32,), offset=-32)}), "18446744073709551584"),
        (gguf_bytes(tensors={**TENSORS, "x": Tensor((32,), kind=26)}), "x has the type 26"),
        (gguf_bytes(tensors={**TENSORS, "x": Tensor((32, 2), kind=9)}), "x has the type 9"),
        (gguf_bytes(tensors={**TENSORS, "x": Tensor((32,), kind=1, size=64)}), "x has the type 1"),
        (gguf_bytes(tensors={**TENSORS, "x": Tensor((33, 2), kind=8, size=99)}), "x has the shape"),
        (gguf_bytes(tensors={**TENSORS, "x": Tensor((0, 2))}), "x has the shape 0 x 2"),
        (gguf_bytes(tensors={**TENSORS, "x": Tensor((1,) * 5)}), "x has 5 dimensions"),
        (gguf_bytes(tensors={**TENSORS, "x": Tensor((1 << 62, 2), size=4)}), "before the data of"),
        (gguf_bytes(tensors={**TENSORS, "x" * 64: Tensor((32,))}), "is 64 bytes long"),
        (gguf_bytes() + bytes(32), "it has 32 bytes that belong to no tensor"),
        (gguf_bytes(data=False), "it ends before the data of tensor token_embd.weight"),
    ],
)  # fmt: skip
def test_a_damaged_header_is_one_line(tmp_path: Path, content: bytes, texts: str) -> None:
    with pytest.raises(UsageError) as raised:
        read(tmp_path, content)
    assert texts in raised.value.message and "\n" not in str(raised.value)
    assert raised.value.message.startswith(f"{tmp_path / 'file.gguf'} is damaged: ")


@contextmanager
def peak() -> Iterator[list[int]]:
    """Measures the largest number of bytes that Python holds within it."""
    measured = list[int]()
    tracemalloc.start()
    try:
        yield measured
    finally:
        measured.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()


@pytest.mark.in_turn
@pytest.mark.parametrize("kind", [(1, "b"), (7, "?"), (3, "h"), (6, "f"), (12, "d")])
@pytest.mark.parametrize("lists", [1, 400])
def test_lists_of_numbers_take_at_most_twice_their_size(
    tmp_path: Path, kind: tuple[int, str], lists: int
) -> None:
    size = (8 << 20) // lists // 8 * 8
    head = struct.pack("<IIQ", 9, kind[0], size // struct.calcsize(kind[1]))
    given = head + bytes(range(8)) * (size // 8)
    values = {**VALUES, **{f"list.{n}": given for n in range(lists)}}
    content = gguf_bytes(values)
    with peak() as measured:
        header = read(tmp_path, content)
    assert measured[0] <= 2 * size * lists
    assert header.values["qwen2.rope.dimension_sections"] == (2, 3, 3, 0)
    assert len(header.values) == len(values)


MANY = struct.pack("<IIQ", 9, 8, 1 << 17)


@pytest.mark.slow
@pytest.mark.parametrize(
    "values",
    [
        {"k": "\U0001f600" + "a" * (8 << 20)},
        {f"k{n}": "\U0001f600" + "a" * 60_000 for n in range(150)},
        {"k": MANY + text("\u0411\u0412") * (1 << 17)},
        {"tokenizer.ggml.tokens": MANY + text("\u0411\u0412") * (1 << 17)},
        {"k": struct.pack("<IIQ", 9, 8, 1) + text("\U0001f600" + "a" * (8 << 20))},
    ],
    ids=["a text", "texts", "a list", "tokens", "a long one in a list"],
)
def test_texts_take_at_most_twice_their_size(tmp_path: Path, values: dict[str, Any]) -> None:
    content = gguf_bytes({**VALUES, **values})
    with peak() as measured:
        header = read(tmp_path, content)
    assert measured[0] <= 2.2 * len(content)
    assert header.values.keys() == {**VALUES, **values}.keys()


def test_names_of_strangers_do_not_reach_the_terminal_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as raised:
        read(tmp_path, gguf_bytes({**VALUES, "\x1b[2J\nx": struct.pack("<I", 99)}))
    assert "\x1b" not in raised.value.message and "\n" not in raised.value.message


def test_what_is_no_file_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UsageError, match="cannot be read"):
            read_header(path)


def test_damage_drawn_at_random_is_found_or_changes_nothing_that_places_depend_on(
    tmp_path: Path,
) -> None:
    """A flipped bit may leave a valid header: that of another number or text. It may not move a
    tensor. All else must be found."""
    whole = gguf_bytes()
    original = read(tmp_path, whole)
    ways = mutations(whole, original.data_start, original.tensors)
    found: Counter[str] = Counter()
    for seed in range(MUTATIONS):
        way = list(ways)[seed % len(ways)]
        content = ways[way](random.Random(seed))
        if content == whole:
            continue
        with peak() as measured:
            try:
                header = read(tmp_path, content)
                found["valid"] += 1
                places = [(t.offset, t.bytes) for t in header.tensors.values()]
                expected = [(t.offset, t.bytes) for t in original.tensors.values()]
                assert places == expected, (seed, way)
            except UsageError as error:
                found["refused"] += 1
                assert "\n" not in str(error) and error.hint
        assert measured[0] < MOST_BYTES, (seed, way)
    assert found["refused"] > 0.7 * MUTATIONS, found


OVERWRITTEN = """
import sys
from pathlib import Path
import numpy as np
from artifacts.errors import EnvironmentFault
from stages.models.gguf.half import GgufEmbedding
from stages.models.gguf.header import read_header

path = Path(sys.argv[1])
embedding = GgufEmbedding(read_header(path), 1.0)
assert embedding.num_embeddings == 30000
print(embedding.rows([3, 0, 29999, 3])[:, 0].tolist())
path.write_bytes(b"another file")
try:
    embedding.rows([1, 20000])
except EnvironmentFault as error:
    print(error.message, "-", error.hint)
"""


@pytest.mark.slow
def test_an_embedding_table_that_is_overwritten_is_an_error_and_no_crash(tmp_path: Path) -> None:
    package = pytest.importorskip("gguf", reason="needs the package gguf (make gguf)")
    path = tmp_path / "made.gguf"
    writer = package.GGUFWriter(path, "llama")
    rows = np.repeat(np.arange(30000, dtype=np.float16)[:, None], 64, axis=1)
    writer.add_tensor("token_embd.weight", rows)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = subprocess.run(
        [sys.executable, "-c", OVERWRITTEN, str(path)], cwd=ROOT, capture_output=True, text=True
    )
    numbers, *printed = found.stdout.splitlines() or [""]
    assert (found.returncode, numbers) == (0, "[3.0, 0.0, 30000.0, 3.0]"), found.stderr[-300:]
    assert printed == [
        f"{path} was overwritten while it was open - Download or convert the file again"
    ]
