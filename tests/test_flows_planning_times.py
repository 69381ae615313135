"""What is left of a job, and the seconds it takes on a measured machine."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import flows.planning.times
from flows.console.display import Display
from flows.job.prepare import Job, prepare
from flows.options.commands import CaptionConfig
from flows.pipelines import CAPTION
from flows.planning.machine import MachineLookup
from flows.planning.remaining_work import remaining_work
from flows.planning.rungs import Rung
from flows.planning.seconds import Pass, WorkEstimate, pass_seconds, seconds, seconds_per_parameter
from flows.planning.sizes import Estimate, estimates
from flows.planning.times import stage_seconds, times_of
from flows.running.run import caption
from stages.models.footprint import BatchCost
from tests.support.machines import machine
from tests.support.media import write_video
from tests.support.stand_ins import PROFILE, Stages, config_in

RUNGS = {stage.name: Rung(stage=stage.name, batch=2) for stage in CAPTION}
CLIPS = 4


@pytest.fixture
def config(tmp_path: Path) -> CaptionConfig:
    (tmp_path / "clips").mkdir()
    for number in range(CLIPS):
        write_video(tmp_path / "clips" / f"{number}.mp4", ticks=range(30), gop=5 + number)
    return config_in(tmp_path, tmp_path / "clips", max_new_tokens=10)


def job_of(config: CaptionConfig) -> tuple[Job, list[Estimate]]:
    """A job whose encoder takes 1 GFLOP a batch of two chunks, and whose decoder 4 for reading two
    prompts and 4 a step."""
    job = prepare(config, Stages())
    found = estimates(job)
    unit = remaining_work(job, found)[0].workload
    encoder = BatchCost(
        kind="video", rows=2, units=unit.units, peak_bytes=0, kept_bytes=0, flops=10**9
    )
    decoder = replace(encoder, units=unit.tokens, flops=4 * 10**9, step_flops=4 * 10**9)
    profile = replace(
        PROFILE,
        parts={
            "vision": replace(PROFILE.vision, batch_costs=(encoder,), stored_bytes=10**9),
            "language": replace(PROFILE.language, batch_costs=(decoder,), stored_bytes=2 * 10**9),
        },
    )
    return replace(job, model=replace(job.model, profile=profile)), found


def test_everything_is_left_of_a_new_job(config: CaptionConfig) -> None:
    job, found = job_of(config)
    (left,) = remaining_work(job, found)
    assert left.left == {"encode": CLIPS, "decode": CLIPS}
    assert left.pixels == CLIPS * 30 * 48 * 64
    job, found = job_of(replace(config, prompts={"who": "Who?", "where": "Where?"}))
    assert remaining_work(job, found)[0].left == {"encode": CLIPS, "decode": 2 * CLIPS}


def test_nothing_is_left_of_a_job_that_was_run(config: CaptionConfig) -> None:
    caption(config, Display(quiet=True), Stages().launcher)
    job, found = job_of(config)
    (left,) = remaining_work(job, found)
    assert (left.pixels, left.left) == (0, {"encode": 0, "decode": 0})
    assert set(stage_seconds(job, RUNGS, found, machine()).values()) == {0}


def test_seconds_are_those_of_starting_loading_and_computing(config: CaptionConfig) -> None:
    job, found = job_of(replace(config, encode_way="batches"))
    told = stage_seconds(job, RUNGS, found, machine(prepare=1e18, disk_write=1e18))
    # 7.1 of starting, 1 of reading the weights; of two batches 1e9 / (2 x 512) x 128 ns each.
    assert told["encode"] == pytest.approx(7.1 + 1 + 2 * 0.125, rel=1e-3)
    # Steps of two rows: 4e9 / (2 x 2) parameters of 8/7 ns each, 10 of them a batch.
    reading = told["decode"]
    assert reading is not None
    shorter = stage_seconds(job, RUNGS, found, machine(), new_tokens=0)["decode"]
    assert shorter is not None
    assert reading - shorter == pytest.approx(2 * 10 * 1e9 * 8 / 7 * 1e-9, rel=1e-3)


def measured(_: str) -> MachineLookup:
    return MachineLookup(machine=machine())


def test_a_run_s_record_says_what_was_expected_of_its_stages(
    config: CaptionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    caption(config, Display(quiet=True), Stages().launcher)
    record = json.loads((Path(config.out) / "run.json").read_text())
    assert record["plan"]["seconds"] is None
    monkeypatch.setattr(flows.planning.times, "find_machine", measured)
    again = replace(config, prompt="Who?")
    caption(again, Display(quiet=True), Stages().launcher)
    told = json.loads((Path(config.out) / "run.json").read_text())["plan"]["seconds"]
    assert told["frames"] == told["encode"] == 0 < told["decode"]


def test_an_unmeasured_machine_has_no_times_and_that_is_said(
    config: CaptionConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    job, found = job_of(config)
    told = times_of(job, RUNGS, found)
    assert told.seconds is None
    assert told.line.startswith("unknown: this machine was not measured; `penstock doctor")


def test_times_are_told_stage_by_stage(
    config: CaptionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows.planning.times, "find_machine", measured)
    job, found = job_of(config)
    told = times_of(job, RUNGS, found)
    assert told.seconds is not None and list(told.seconds) == ["frames", "encode", "decode"]
    assert "encode 8." in told.line and "decode up to" in told.line
    partly = stage_seconds(job, RUNGS, found, machine(passes={}))
    assert partly["encode"] is None and partly["frames"] is not None


POINTS = ((1, 1e-9), (8, 2e-9), (512, 128e-9))


@pytest.mark.parametrize(
    ("tokens", "nanoseconds"), [(1, 1.0), (8, 2.0), (260, 65.0), (512, 128.0), (5120, 1280.0)]
)
def test_a_parameter_takes_what_was_measured_or_between(tokens: int, nanoseconds: float) -> None:
    assert seconds_per_parameter(POINTS, tokens) == pytest.approx(nanoseconds * 1e-9)


def test_a_pass_takes_its_multiplications_reading_its_weights_or_calling_it() -> None:
    prompt = Pass(precision="fp32", flops=2 * 1e9 * 512, tokens=512)
    assert pass_seconds(machine(), prompt) == pytest.approx(128)
    step = Pass(precision="fp32", flops=2 * 1e9, tokens=1)
    assert pass_seconds(machine(), step) == pytest.approx(1)
    small = Pass(precision="fp32", flops=2e3, tokens=1, calls=30)
    assert pass_seconds(machine(), small) == pytest.approx(3e-3)
    outside = replace(step, moved_bytes=3e9)
    assert pass_seconds(machine(), outside) == pytest.approx(1 + 3)
    assert pass_seconds(machine(to_device=6e9), outside) == pytest.approx(1 + 0.5)


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


def test_what_was_not_measured_has_no_time() -> None:
    half = WorkEstimate(passes=(Pass(precision="fp16", flops=1, tokens=1),))
    assert seconds(machine(), half) is None
    assert seconds(machine(), WorkEstimate(quantized={"int8": 1})) is None
    assert seconds(machine(video_pixels=0.0), WorkEstimate(video_pixels=1)) is None
