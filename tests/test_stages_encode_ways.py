"""What passes the vision half with an input has no part in its bytes, in every way that holds; a
way that does not hold is found out, and remembered."""

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from artifacts.errors import HalfTried
from artifacts.packs import RecordSet
from artifacts.store import open_store
from artifacts.tensors import pack_tree
from stages.models.encoding.passes import PassRow, WayTrials, encode_passes
from stages.models.encoding.ways import FIXED_ROWS, KIND
from stages.models.halves.records import FeatureRecord
from stages.models.processors.side_inputs import Prepared
from tests.support.tiny_families.in_slots import judged_in_passes, prepared_rows

Change = Callable[[Any, int], Any]
"""Features of the images of a pass, and the number of passes before it → other features."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Compute in one thread: several divide the rows of small products unevenly."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trials(folder: Path) -> WayTrials:
    return WayTrials(RecordSet(open_store(str(folder)), KIND, "a" * 64))


def rows_in(rows: Sequence[Prepared], count: int) -> list[PassRow]:
    return [PassRow(prepared=row, rows=count) for row in rows]


def bytes_of(made: Sequence[FeatureRecord]) -> list[bytes]:
    return [pack_tree(each.to_tree())[1] for each in made]


def half_and_rows(change: Change | None = None) -> tuple[Any, list[Prepared], list[int]]:
    """A tiny half whose features are changed, images for it, and the rows of each of its passes."""
    model, rows = prepared_rows("llava", torch.float32)
    encode, passes = model.model.get_image_features, list[int]()

    @functools.wraps(encode)
    def changed(*args: Any, **kwargs: Any) -> Any:
        found = encode(*args, **kwargs)
        pooled = [*found.pooler_output]
        passes.append(len(pooled))
        if change is not None:
            found.pooler_output = [
                value + change(at, len(passes)) for at, value in enumerate(pooled)
            ]
        return found

    model.model.get_image_features = changed
    return model, rows, passes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", ["llava", "qwen2_5_vl", "qwen2_5_vl:video"])
def test_both_ways_hold_with_these_families(
    variant: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    assert judged_in_passes(variant, tmp_path, dtype) == ["alone", "fixed"]


@pytest.mark.parametrize("variant", ["molmo2", "minicpmv4_6"])
def test_a_family_that_does_not_separate_its_rows_is_encoded_alone(
    variant: str, tmp_path: Path
) -> None:
    assert judged_in_passes(variant, tmp_path) == ["alone"]


@pytest.mark.parametrize("count", [1, FIXED_ROWS])
def test_order_and_company_have_no_part_in_the_bytes(count: int, tmp_path: Path) -> None:
    model, rows, passes = half_and_rows()
    known = trials(tmp_path)
    whole = bytes_of(encode_passes(model, rows_in(rows, count), known))
    tried = len(passes)
    others = bytes_of(encode_passes(model, rows_in(rows[::-1], count), known))[::-1]
    single = [bytes_of(encode_passes(model, rows_in([row], count), known))[0] for row in rows]
    assert whole == others == single
    assert set(passes) == {count}
    # The trial takes two passes, once.
    of_five = 5 if count == 1 else 1
    assert (tried, len(passes)) == (2 + of_five, 2 + 2 * of_five + 5)


def test_a_half_that_looks_at_the_place_takes_each_input_alone(tmp_path: Path) -> None:
    model, rows, passes = half_and_rows(lambda place, _: 1e-3 * place)
    alone = bytes_of(encode_passes(model, rows_in(rows, 1), trials(tmp_path / "other")))
    passes.clear()
    made = encode_passes(model, rows_in(rows, FIXED_ROWS), known := trials(tmp_path))
    assert bytes_of(made) == alone
    assert passes == [FIXED_ROWS] * 2 + [1] * 2 + [1] * len(rows)
    assert known.verdict(rows_in(rows, FIXED_ROWS)[0]) is False
    passes.clear()
    again = encode_passes(model, rows_in(rows, FIXED_ROWS), trials(tmp_path))
    assert bytes_of(again) == alone and passes == [1] * len(rows)


def test_a_half_that_computes_one_input_twice_differently_is_planned_again(tmp_path: Path) -> None:
    model, rows, _ = half_and_rows(lambda place, number: 1e-3 * number)
    with pytest.raises(HalfTried, match="one input twice with different results"):
        encode_passes(model, rows_in(rows, FIXED_ROWS), known := trials(tmp_path))
    assert [known.verdict(rows_in(rows, count)[0]) for count in (FIXED_ROWS, 1)] == [False, False]


def test_a_size_class_is_tried_when_it_appears(tmp_path: Path) -> None:
    model, rows = prepared_rows("qwen2_5_vl", torch.float32)
    _, videos = prepared_rows("qwen2_5_vl:video", torch.float32)
    known = trials(tmp_path)
    encode_passes(model, rows_in(rows, FIXED_ROWS), known)
    first, later = rows_in(rows, FIXED_ROWS)[0], rows_in(videos, FIXED_ROWS)[0]
    assert known.key(first) != known.key(later)
    assert [known.verdict(row) for row in (first, later)] == [True, None]
    encode_passes(model, rows_in([*videos, *rows], FIXED_ROWS), known)
    assert [known.verdict(row) for row in (first, later)] == [True, True]
