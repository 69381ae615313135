"""The fitted costs predict the memory of any size from dry runs at a few sizes."""

from collections.abc import Callable
from typing import Any

import pytest

from stages.models.dry_run import dry_run
from stages.models.footprint import BatchCost, FittedCosts, Size
from stages.models.halves.model_class import config_and_class, skeleton_of
from stages.models.halves.split_route import choose_route
from stages.models.inspection import frames_per_video
from stages.models.processors.loading import load_processor
from tests.support.checkpoints import MODELS, whole_checkpoint
from tests.support.families import BUILDERS, checkpoint

SIZES = ((1, 100), (1, 400), (1, 1000), (2, 400), (2, 1000))


def fitted(
    peak: Callable[[int, int], int], sizes: tuple[tuple[int, int], ...] = SIZES
) -> FittedCosts:
    costs = []
    for rows, units in sizes:
        count, most = rows * units, peak(rows, units)
        size: dict[str, Any] = {"kind": "image", "rows": rows, "units": units, "step_flops": rows}
        size |= {"kept_bytes": 8 * count, "mlp_bytes": 4 * count, "step_bytes": 8 * count + 500}
        size |= {"peak_bytes": most, "peak_bytes_32": 2 * most - 1000, "flops": 7 * count}
        costs.append(BatchCost(**size))
    return FittedCosts(costs)


@pytest.mark.parametrize(
    "peak",
    [
        lambda rows, units: 5000 + 60 * rows * units,
        lambda rows, units: 5000 + 60 * rows * units + 3 * rows * units**2,
        lambda rows, units: 100 + 9000 * rows + 60 * rows * units,
        lambda rows, units: 10 + 60 * rows * units + (2 * rows * units**2 if rows > 1 else 0),
    ],
)
@pytest.mark.parametrize(("rows", "units"), [(1, 250), (1, 4000), (8, 700), (3, 5000)])
def test_growth_is_told_from_a_few_sizes(
    peak: Callable[[int, int], int], rows: int, units: int
) -> None:
    found = fitted(peak).peak(Size("image", rows, units))
    assert found == pytest.approx(peak(rows, units), rel=0.01)


def test_two_sizes_give_a_line_and_one_a_proportion() -> None:
    def line(rows: int, units: int) -> int:
        return 100 + rows * units

    two = fitted(line, ((1, 500), (2, 500)))
    assert two.peak(Size("image", 8, 500)) == pytest.approx(4100)
    one = fitted(line, ((1, 500),))
    assert one.peak(Size("image", 4, 500)) == pytest.approx(2400)
    assert FittedCosts(()).peak(Size("image", 4, 500)) == 0


def test_a_kind_that_was_not_run_is_told_by_the_other() -> None:
    images = fitted(lambda rows, units: rows * units)
    assert images.peak(Size("video", 2, 200)) == pytest.approx(400)


def test_wider_numbers_tokens_and_pieces_change_the_peak() -> None:
    costs, size = fitted(lambda rows, units: 60 * rows * units), Size("image", 4, 1000)
    assert costs.peak(size, item_bytes=4) == pytest.approx(2 * 240_000 - 1000, rel=0.01)
    assert costs.kept(size, item_bytes=4) == pytest.approx(64_000)
    pieces = costs.peak(size, mlp_chunk=500)
    assert pieces == pytest.approx(240_000 - 16_000 * (1 - 500 / 4000), rel=0.01)
    long = costs.peak(size, new_tokens=20_000)
    assert long == pytest.approx(8 * 4 * 21_000, rel=0.01)
    assert costs.figure(size, lambda cost: cost.flops) == pytest.approx(28_000)


def test_growth_that_two_peaks_only_seem_to_lose_is_left_out() -> None:
    def bent(rows: int, units: int) -> int:
        return max(50_000, 60 * rows * units)

    found = fitted(bent).peak(Size("image", 8, 8000))
    assert found >= 0.8 * bent(8, 8000)


@pytest.mark.parametrize(("mlp_chunk", "peak"), [(5, 70), (40, 88), (50, 100), (0, 100)])
def test_pieces_take_no_less_than_what_lives_beside_mlps(mlp_chunk: int, peak: int) -> None:
    """An MLP that is given 50 positions at once has 60 of 100 bytes inside."""
    size = Size("image", 1, 1000)
    parts: Any = {"peak_bytes": 100, "mlp_bytes": 60, "outside_bytes": 70, "kept_bytes": 1}
    cost = BatchCost(positions=50, flops=1, **parts, **size._asdict())
    assert FittedCosts([cost]).peak(size, mlp_chunk=mlp_chunk) == peak


FEW = ("qwen2_5_vl", "blip_2", "florence2")


@pytest.mark.in_turn
@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=[] if name in FEW else pytest.mark.slow)
        for name in (*BUILDERS, *MODELS)
    ],
)
def test_batch_costs_are_found_by_every_route(family: str) -> None:
    folder = checkpoint(family) if family in BUILDERS else whole_checkpoint(family)
    config, cls = config_and_class(folder, trusted=False)
    skeleton = skeleton_of(config, cls)
    route = choose_route(skeleton).route
    processor = load_processor(folder, False)
    found = dry_run(skeleton, processor, route, frames_per_video(processor))
    batch_costs = found.batch_costs
    assert found.why == ""
    assert bool(batch_costs["vision"]) == (route != "joint")
    one, two = (next(w for w in batch_costs["language"] if w.rows == rows) for rows in (1, 2))
    assert two.peak_bytes > one.peak_bytes > 0
    assert all(work.flops > 0 for work in batch_costs["language"])
    for work in (*batch_costs["vision"], *batch_costs["language"]):
        assert 0 < work.outside_bytes <= work.peak_bytes
        assert work.outside_bytes_32 <= work.peak_bytes_32
        assert work.peak_bytes - work.mlp_bytes <= work.outside_bytes
    # What waits for a layer is less than what computes.
    assert all(0 <= work.waiting_bytes < work.peak_bytes for work in batch_costs["vision"])
    if route == "protocol" and (memory := found.row_memory) is not None:
        windowed = sum(kind.layers * kind.token_bytes for kind in memory.kept if kind.window)
        for work in (work for work in batch_costs["language"] if work.rows == 1):
            assert 0 <= memory.bytes(work.units, 2) - work.kept_bytes <= windowed
    # One family keeps nothing between tokens.
    assert all(work.kept_bytes > 0 for work in batch_costs["language"]) == (family != "pix2struct")
