"""How long work takes on a measured machine."""

import pytest

from flows.planning.seconds import Pass, WorkEstimate, a_parameter, pass_seconds, seconds
from tests.support.machines import machine

POINTS = ((1, 1e-9), (8, 2e-9), (512, 128e-9))


@pytest.mark.parametrize(
    ("tokens", "nanoseconds"), [(1, 1.0), (8, 2.0), (260, 65.0), (512, 128.0), (5120, 1280.0)]
)
def test_a_parameter_takes_what_was_measured_and_what_lies_between(
    tokens: int, nanoseconds: float
) -> None:
    assert a_parameter(POINTS, tokens) == pytest.approx(nanoseconds * 1e-9)


def test_reading_a_prompt_takes_its_multiplications() -> None:
    run = Pass(precision="fp32", flops=2 * 1e9 * 512, tokens=512)
    assert pass_seconds(machine(), run) == pytest.approx(128)


def test_a_step_takes_what_reading_the_weights_takes_however_few_its_multiplications() -> None:
    run = Pass(precision="fp32", flops=2 * 1e9, tokens=1)
    assert pass_seconds(machine(), run) == pytest.approx(1)


def test_a_small_model_takes_what_calling_it_takes() -> None:
    run = Pass(precision="fp32", flops=2e3, tokens=1, calls=30)
    assert pass_seconds(machine(), run) == pytest.approx(3e-3)


def test_weights_that_stay_outside_come_each_time() -> None:
    run = Pass(precision="fp32", flops=2 * 1e9, tokens=1, moved_bytes=3e9)
    assert pass_seconds(machine(), run) == pytest.approx(1 + 3)
    assert pass_seconds(machine(to_device=6e9), run) == pytest.approx(1 + 0.5)


def test_a_stage_takes_the_sum_of_what_it_does() -> None:
    work_left = WorkEstimate(
        halves=1,
        passes=(Pass(precision="nf4", flops=2e9, tokens=1, times=10),),
        quantized={"nf4": 1e8},
        read_bytes=2e9,
        written_bytes=1e8,
        prepared=1e7,
        video_pixels=3e9,
        picture_pixels=4e8,
        device_bytes=1e12,
    )
    # 7.1 of starting, 10 of steps, 10 of quantizing, 2 and 1 of disk, 1 of preparing, 3 and 2 of
    # decoding; nothing is copied to a CPU.
    assert seconds(machine(), work_left) == pytest.approx(36.1)
    assert seconds(machine(), WorkEstimate()) == 0


@pytest.mark.parametrize(
    "work_left",
    [
        WorkEstimate(passes=(Pass(precision="fp16", flops=1, tokens=1),)),
        WorkEstimate(quantized={"int8": 1}),
    ],
)
def test_what_was_not_measured_has_no_time(work_left: WorkEstimate) -> None:
    assert seconds(machine(), work_left) is None


def test_pictures_have_no_time_where_decoding_was_not_measured() -> None:
    assert seconds(machine(video_pixels=0.0), WorkEstimate(video_pixels=1)) is None
