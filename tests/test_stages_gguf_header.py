"""Headers of GGUF files: what is read of a valid one, and that each damaged one is one line."""

import random
import struct
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import UsageError
from stages.models.gguf.header import read_header
from tests.support.gguf_bytes import TENSORS, VALUES, Tensor, gguf_bytes, mutations, text

MUTATIONS = 200
MOST_BYTES = 4 << 20
"""What reading a damaged header of some hundred bytes may take."""
UP = "blk.0.ffn_up.weight"


def read(folder: Path, content: bytes) -> Any:
    path = folder / "file.gguf"
    path.write_bytes(content)
    return read_header(path)


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in VALUES.items() if name != key}


def test_a_valid_header_is_read(tmp_path: Path) -> None:
    header = read(tmp_path, gguf_bytes())
    assert header.architecture == "qwen2"
    assert header.values["qwen2.rope.dimension_sections"] == (2, 3, 3, 0)
    assert header.values["tokenizer.ggml.tokens"] == ("a", "b", "c")
    up = header.tensors[UP]
    assert (up.shape, up.bytes, up.offset) == ((64, 32), 64 * 34, 8 * 32 * 4 + 32 * 4)
    assert header.parameters == 64 * 32 + 32 + 8 * 32
    assert header.data_start % 32 == 0
    assert read(tmp_path, gguf_bytes(version=2)).tensors == header.tensors
    aligned = gguf_bytes({**VALUES, "general.alignment": 64}, alignment=64)
    assert read(tmp_path, aligned).data_start % 64 == 0


TWICE = text("general.name") + struct.pack("<I", 8) + text("x")


@pytest.mark.parametrize(
    ("content", "said"),
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
def test_a_damaged_header_is_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(UsageError) as raised:
        read(tmp_path, content)
    assert said in raised.value.message and "\n" not in str(raised.value)
    assert raised.value.message.startswith(f"{tmp_path / 'file.gguf'} is damaged: ")


def test_names_of_strangers_do_not_reach_the_terminal_as_they_are(tmp_path: Path) -> None:
    name = "\x1b[2J\nx"
    with pytest.raises(UsageError) as raised:
        read(tmp_path, gguf_bytes({**VALUES, name: struct.pack("<I", 99)}))
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
        tracemalloc.start()
        try:
            header = read(tmp_path, content)
            found["valid"] += 1
            places = [(t.offset, t.bytes) for t in header.tensors.values()]
            assert places == [(t.offset, t.bytes) for t in original.tensors.values()], (seed, way)
        except UsageError as error:
            found["refused"] += 1
            assert "\n" not in str(error) and error.hint
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < MOST_BYTES, (seed, way)
    assert found["refused"] > 0.7 * MUTATIONS, found
