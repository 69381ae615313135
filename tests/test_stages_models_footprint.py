"""From runs at a few sizes to any."""

from collections.abc import Callable
from typing import Any

import pytest

from stages.models.footprint import BatchCost, at_size, kept_bytes, peak_bytes

SIZES = ((1, 100), (1, 400), (1, 1000), (2, 400), (2, 1000))


def batch_costs(
    peak: Callable[[int, int], int], sizes: tuple[tuple[int, int], ...] = SIZES
) -> list[BatchCost]:
    return [
        BatchCost(
            kind="image",
            rows=rows,
            units=units,
            peak_bytes=peak(rows, units),
            peak_bytes_32=2 * peak(rows, units) - 1000,
            kept_bytes=8 * rows * units,
            mlp_bytes=rows * units * 4,
            step_bytes=8 * rows * units + 500,
            flops=7 * rows * units,
            step_flops=rows,
        )
        for rows, units in sizes
    ]


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
    found = peak_bytes(batch_costs(peak), kind="image", rows=rows, units=units)
    assert found == pytest.approx(peak(rows, units), rel=0.01)


def test_two_sizes_give_a_line_and_one_a_proportion() -> None:
    def line(rows: int, units: int) -> int:
        return 100 + rows * units

    two = batch_costs(line, ((1, 500), (2, 500)))
    assert peak_bytes(two, kind="image", rows=8, units=500) == pytest.approx(4100)
    one = batch_costs(line, ((1, 500),))
    assert peak_bytes(one, kind="image", rows=4, units=500) == pytest.approx(2400)
    assert peak_bytes((), kind="image", rows=4, units=500) == 0


def test_a_kind_that_was_not_run_is_told_by_the_other() -> None:
    known = batch_costs(lambda rows, units: rows * units)
    assert peak_bytes(known, kind="video", rows=2, units=200) == pytest.approx(400)


def test_wider_numbers_tokens_and_pieces_change_the_peak() -> None:
    known = batch_costs(lambda rows, units: 60 * rows * units)
    size: dict[str, Any] = {"kind": "image", "rows": 4, "units": 1000}
    assert peak_bytes(known, **size, item_bytes=4) == pytest.approx(2 * 240_000 - 1000, rel=0.01)
    assert kept_bytes(known, **size, item_bytes=4) == pytest.approx(64_000)
    pieces = peak_bytes(known, **size, mlp_chunk=500)
    assert pieces == pytest.approx(240_000 - 16_000 * (1 - 500 / 4000), rel=0.01)
    long = peak_bytes(known, **size, new_tokens=20_000)
    assert long == pytest.approx(8 * 4 * 21_000, rel=0.01)
    assert at_size(known, lambda work: work.flops, **size) == pytest.approx(28_000)


def test_growth_that_two_peaks_only_seem_to_lose_is_left_out() -> None:
    def bent(rows: int, units: int) -> int:
        return max(50_000, 60 * rows * units)

    found = peak_bytes(batch_costs(bent), kind="image", rows=8, units=8000)
    assert found >= 0.8 * bent(8, 8000)


@pytest.mark.parametrize(("mlp_chunk", "peak"), [(5, 70), (40, 88), (50, 100), (0, 100)])
def test_pieces_take_no_less_than_what_lives_beside_mlps(mlp_chunk: int, peak: int) -> None:
    """An MLP that is given 50 positions at once has 60 of 100 bytes inside."""
    work = BatchCost(
        kind="image",
        rows=1,
        units=1000,
        peak_bytes=100,
        mlp_bytes=60,
        outside_bytes=70,
        positions=50,
        kept_bytes=1,
        flops=1,
    )
    assert peak_bytes([work], kind="image", rows=1, units=1000, mlp_chunk=mlp_chunk) == peak
