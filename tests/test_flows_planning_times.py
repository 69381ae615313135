"""What is left of a job in pixels and tokens, the seconds that it takes on a measured machine, and
when a measurement is not used."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

import flows.planning.plan
from benchmarks._processors import qwen2_5_vl
from flows.cli.doctor_command import measured_lines
from flows.cli.main import main
from flows.console.display import Display
from flows.job.prepare import Job, prepare
from flows.machine.launch import DirectLauncher
from flows.options.commands import CaptionConfig
from flows.pipelines import CAPTION
from flows.planning.ladder import Rung
from flows.planning.machine import (
    Machine,
    Pass,
    WorkEstimate,
    find_machine,
    measure,
    pass_seconds,
    seconds,
    seconds_per_parameter,
)
from flows.planning.plan import stage_seconds, times_of
from flows.planning.sizes import Estimate, estimates
from flows.planning.workloads import remaining_work, workload_of
from flows.running.run import caption
from stages.memory.measure import _benchmarks
from stages.models.footprint import BatchCost
from stages.models.processors.input_sizes import bytes_of, pixels_per_video, probe
from stages.models.processors.loading import Clip
from stages.models.processors.prepare import prepare as prepare_clip
from stages.process.device import device_name
from tests.support import by_hand
from tests.support.machines import machine
from tests.support.media import write_videos
from tests.support.stand_ins import PROFILE, Stages, config_in

RUNGS = {stage.name: Rung(stage=stage.name, batch=2) for stage in CAPTION}
CLIPS = 4


@pytest.fixture
def config(tmp_path: Path) -> CaptionConfig:
    clips = write_videos(tmp_path / "clips", CLIPS, frames=30)
    return config_in(tmp_path, clips, max_new_tokens=10)


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
    assert set(stage_seconds(job, RUNGS, found, machine(), 10).values()) == {0}


def test_seconds_are_those_of_starting_loading_and_computing(
    config: CaptionConfig, in_batches: None
) -> None:
    job, found = job_of(config)
    message = stage_seconds(job, RUNGS, found, machine(prepare=1e18, disk_write=1e18), 10)
    # 7.1 of starting, 1 of reading the weights; of two batches 1e9 / (2 x 512) x 128 ns each.
    assert message["encode"] == pytest.approx(7.1 + 1 + 2 * 0.125, rel=1e-3)
    # Steps of two rows: 4e9 / (2 x 2) parameters of 8/7 ns each, 10 of them a batch.
    reading = message["decode"]
    assert reading is not None
    shorter = stage_seconds(job, RUNGS, found, machine(), 0)["decode"]
    assert shorter is not None
    assert reading - shorter == pytest.approx(2 * 10 * 1e9 * 8 / 7 * 1e-9, rel=1e-3)


def as_measured(_: str) -> tuple[Machine, str]:
    return machine(), ""


def test_a_run_s_record_says_what_was_expected_of_its_stages(
    config: CaptionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    caption(config, Display(quiet=True), Stages().launcher)
    record = json.loads((Path(config.out) / "run.json").read_text())
    assert record["plan"]["seconds"] is None
    monkeypatch.setattr(flows.planning.plan, "find_machine", as_measured)
    again = replace(config, prompt="Who?")
    caption(again, Display(quiet=True), Stages().launcher)
    values = json.loads((Path(config.out) / "run.json").read_text())["plan"]["seconds"]
    assert values["frames"] == values["encode"] == 0 < values["decode"]


def test_an_unmeasured_machine_has_no_times_and_that_is_said(
    config: CaptionConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    job, found = job_of(config)
    seconds, line = times_of(job, RUNGS, found)
    assert seconds is None
    assert line.startswith("unknown: this machine was not measured; `penstock doctor")


def test_what_could_not_be_measured_is_named_as_plans_name_it(
    config: CaptionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmarks = [*_benchmarks("cpu", "fp32")]
    assert benchmarks[:2] == ["video_pixels", "picture_pixels"], "each plan needs one of them"
    found = machine(video_pixels=0.0, missing=dict.fromkeys(benchmarks, "there was no time left"))
    (line,) = (x for x in measured_lines(found) if "no time left" in x)
    assert "frames of videos, frames of images, computing in fp32, " in line
    assert "quantizing to nf4" in line and "_" not in line
    assert line.endswith(", which plans call unknown: there was no time left")
    monkeypatch.setattr(flows.planning.plan, "find_machine", lambda _: (found, ""))
    job, expected = job_of(config)
    _, text = times_of(job, RUNGS, expected)
    assert text.startswith("frames unknown, encode ")
    assert "what is unknown could not be measured; `penstock doctor --measure`" in text


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
    assert pass_seconds(machine(to_device=6e9), outside) == pytest.approx(1)
    assert pass_seconds(machine(to_device=1.5e9), outside) == pytest.approx(2)


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


DEVICE = device_name()


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Machine]]:
    """The file of this machine's figures, and the figures: measured once, really."""
    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("measured")
        patch.setenv("XDG_CACHE_HOME", str(cache))
        made = measure(DEVICE, cache / "store", DirectLauncher(lambda *_: None))
        (file,) = cache.glob("penstock/machines/*.json")
        yield file, made


@pytest.fixture
def file(measured: tuple[Path, Machine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that file where this test looks for it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    copy = tmp_path / "penstock" / "machines" / measured[0].name
    copy.parent.mkdir(parents=True)
    copy.write_bytes(measured[0].read_bytes())
    return copy


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.slow
def test_figures_are_those_of_a_machine_and_are_found_again_and_told(
    file: Path, measured: tuple[Path, Machine], capsys: pytest.CaptureFixture[str]
) -> None:
    machine = measured[1]
    assert find_machine(DEVICE)[0] == machine
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "GFLOP/s in prefill" in shown and "frames/s of 720p" in shown
    file.unlink()
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "this machine was not measured" in shown and "penstock doctor --measure" in shown
    assert machine.cores == len(os.sched_getaffinity(0))
    assert 0.1 < machine.python_seconds < 60
    assert machine.flops("fp32") > 1e8
    for points in machine.passes.values():
        assert [tokens for tokens, _ in points] == [1, 8, 256]
        assert min(seconds for _, seconds in points) > 0
    assert min(machine.disk_read, machine.disk_write, machine.prepare) > 1e5
    assert {*machine.passes, *(name.split()[-1] for name in machine.missing)} >= {
        "fp32", "bf16", "fp16", "int8", "nf4"
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"torch": "1.0"}, "it was measured with torch 1.0"),
        ({"cores": 4711}, "it was measured with 4711 cores"),
        ({"format": 0}, "this machine was not measured"),
        ({"passes": 3}, "this machine was not measured"),
        ({"load": 7.0}, "machine was busy"),
    ],
)
def test_an_old_measurement_is_not_used_and_one_of_a_busy_machine_is(
    changed: dict[str, object], says: str, file: Path
) -> None:
    change(file, **changed)
    known, why = find_machine(DEVICE)
    assert (known is not None) == ("load" in changed) and says in why


hf: Any = transformers


def qwen3_vl() -> Any:
    """Whose processor makes the frames of a video the smaller the more there are."""
    patches = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2}
    other = qwen2_5_vl()
    return hf.Qwen3VLProcessor(
        image_processor=hf.Qwen2VLImageProcessor(**patches),
        tokenizer=other.tokenizer,
        video_processor=hf.Qwen3VLVideoProcessor(cap_pixels_per_frame=False, **patches),
        chat_template=other.tokenizer.chat_template,
    )


@pytest.mark.parametrize(
    ("make", "frames", "height", "width"),
    [
        (qwen2_5_vl, 2, 360, 640),
        pytest.param(qwen3_vl, 7, 256, 256, marks=pytest.mark.slow),
    ],
)
def test_chunks_are_as_the_processor_gives(make: Any, frames: int, height: int, width: int) -> None:
    processor = make()
    probed = probe(processor, "video")
    profile = replace(
        by_hand.PROFILE,
        modalities=("image", "video"),
        fit_video=probed.fit,
        frame_tokens=probed.tokens,
        frame_pixel_bytes=probed.pixel_bytes,
        frame_sizes=probed.smaller,
        pixels_per_video=pixels_per_video(processor),
    )
    stored = profile.fit_video.size(height, width)
    clip = Clip(
        frames=np.zeros((frames, *stored, 3), np.uint8),
        times=tuple(map(float, range(frames))),
        seconds=float(frames),
        kind="video",
    )
    row = prepare_clip(processor, clip, "x")
    numbers = bytes_of(row.inputs["pixel_values_videos"]) // 4
    workload = workload_of(by_hand.model(profile), "video", 1, frames, stored, (height, width), "x")
    tokens = workload.tokens - workload.text_tokens
    # Sizes are rounded to whole patches, and small videos may be enlarged.
    assert 0.95 < workload.units / numbers < 1.25
    assert 0.95 < tokens / row.count.tokens < 1.25


def test_only_a_processor_that_counts_frames_limits_a_video() -> None:
    assert pixels_per_video(qwen2_5_vl()) == 0
    assert pixels_per_video(qwen3_vl()) == dict(qwen3_vl().video_processor.size)["longest_edge"]
