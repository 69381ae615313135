"""A rung that held is where the next run starts, as long as it has no more memory."""

from pathlib import Path

import pytest

from artifacts.store import FolderStore
from flows.planning import remembered
from flows.planning.costs.decode import decode_rungs
from flows.planning.costs.encode import encode_rungs
from flows.planning.ladder import index_of
from flows.planning.remembered import Remembered
from flows.planning.rungs import Rung, sizes

GIB = 1 << 30
ABOUT = {"encode": ["card", "half"], "decode": ["card", "half"]}
FOUR = Rung(stage="decode", batch=4, precision="bf16")
ONE = Rung(stage="decode", batch=1, precision="int8")


def of(folder: Path, budget: float, *more: str) -> Remembered:
    about = {stage: [*of, *more] for stage, of in ABOUT.items()}
    return Remembered(FolderStore(folder), about, int(budget * GIB))


@pytest.mark.parametrize(
    ("budget", "found"), [(8, [FOUR]), (3, [FOUR]), (8.3, [FOUR]), (8.5, []), (80, [])]
)
def test_what_was_too_much_is_too_much_for_no_more_memory(
    tmp_path: Path, budget: float, found: list[Rung]
) -> None:
    of(tmp_path, 8).keep(FOUR)
    assert of(tmp_path, budget).rungs("decode") == found
    assert of(tmp_path, budget).rungs("encode") == []


def test_what_is_learned_with_less_memory_leaves_alone_what_is_known_of_more(
    tmp_path: Path,
) -> None:
    of(tmp_path, 8).keep(FOUR)
    of(tmp_path, 2).keep(ONE)
    assert of(tmp_path, 8).rungs("decode") == [FOUR]
    assert set(of(tmp_path, 2).rungs("decode")) == {FOUR, ONE}
    of(tmp_path, 8).keep(ONE)
    assert of(tmp_path, 8).rungs("decode") == [ONE]


def test_another_half_or_card_is_another_matter(tmp_path: Path) -> None:
    of(tmp_path, 8).keep(FOUR)
    assert of(tmp_path, 8, "another").rungs("decode") == []


def test_after_a_while_it_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of(tmp_path, 8).keep(FOUR)
    monkeypatch.setattr(remembered, "KEPT_SECONDS", -1.0)
    assert of(tmp_path, 8).rungs("decode") == []


@pytest.mark.parametrize(
    ("batch", "found"), [(8, FOUR), (4, FOUR), (2, Rung(stage="decode", batch=2, precision="bf16"))]
)
def test_a_rung_is_found_again_in_a_ladder_of_other_batches(batch: int, found: Rung) -> None:
    ladder = decode_rungs(batch, [("bf16", "")], elsewhere=False, offload=False)
    assert ladder[index_of(ladder, FOUR)] == found
    assert index_of(ladder, ONE) == 0


def test_sizes_divide_each_other_so_that_pieces_are_cut_at_the_same_places() -> None:
    assert [sizes(most) for most in (1, 2, 6, 8, 12)] == [
        [1],
        [2, 1],
        [6, 4, 2, 1],
        [8, 4, 2, 1],
        [12, 8, 4, 2, 1],
    ]


def test_rungs_that_change_words_or_take_many_times_as_long_come_with_leave_alone() -> None:
    asked = decode_rungs(8, [("bf16", "")], elsewhere=True, offload=False)
    assert {(r.precision, r.kv == "quantized", r.offload) for r in asked} == {
        ("bf16", False, False)
    }
    variants = [("bf16", ""), ("bf16", "quantized"), ("int8", ""), ("nf4", "")]
    free = decode_rungs(8, variants, elsewhere=True, offload=True)
    assert free[: len(asked)] == asked
    kinds = list(dict.fromkeys((r.precision, r.kv == "quantized", r.offload) for r in free))
    assert kinds == [
        ("bf16", False, False),
        ("bf16", True, False),
        ("int8", False, False),
        ("nf4", False, False),
        ("bf16", False, True),
    ]
    assert len(set(free)) == len(free)
    pixels = encode_rungs(2, ["bf16"], streamed=False, weights=False)
    assert [rung.batch for rung in pixels] == [2, 1]
    assert all(Rung.from_json(rung.to_json()) == rung for rung in [*free, *pixels])


def test_a_tower_is_streamed_before_its_weights_are_changed() -> None:
    found = encode_rungs(32, ["bf16", "int8"], streamed=True)
    assert [r.precision for r in found] == sorted(r.precision for r in found)
    streamed = [(r.batch, r.block, r.prefill) for r in found if r.block]
    assert all(r.offload and r.precision == "bf16" for r in found if r.block)
    # Smaller blocks first, which change no bytes; never smaller than a batch.
    assert streamed[:6] == [
        (32, 256, 0),
        (32, 64, 0),
        (32, 32, 0),
        (16, 32, 0),
        (16, 16, 0),
        (8, 16, 0),
    ]
    assert streamed[-4:] == [(1, 4, 0), (1, 1, 0), (1, 1, 1024), (1, 1, 256)]
    assert found[-1].precision == "int8" and len(set(found)) == len(found)
    assert all(Rung.from_json(rung.to_json()) == rung for rung in found)
