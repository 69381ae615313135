"""Clips as long as what a trainer takes of them (`--clip-frames`): each data set is read by the
rules of its trainer, and each clip by the number that its pictures show."""

import json
import tomllib
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest

from artifacts.errors import UsageError
from artifacts.texts.trainer_models import MODELS
from flows.commands.tune.training_data import examples_in
from flows.core.options.commands import CaptionConfig
from flows.outputs.record.run_read import load_record
from flows.outputs.run_result import RunResult
from tests.rooms.stages.frames.test_clip_lengths import (
    FILM,
    needed,
    numbers_in,
    write,
    write_varying,
)
from tests.support.saying import Saying, lines, run
from tests.support.stand_ins import config_in
from tests.support.trainers import READERS, diffusion_pipe_takes, musubi_full

RATES = {
    "film.mp4": FILM,
    "tv.mp4": Fraction(30000, 1001),
    "r24.mp4": Fraction(24),
    "r25.mp4": Fraction(25),
    "r30.mp4": Fraction(30),
    "r50.mp4": Fraction(50),
    "r60.mp4": Fraction(60),
}
VARYING = "varying.mp4"
FRAMES = 17


@pytest.fixture
def config(tmp_path: Path) -> CaptionConfig:
    folder = tmp_path / "clips"
    folder.mkdir()
    for name, rate in RATES.items():
        write(folder / name, rate, round(2.5 * float(rate)))
    write_varying(folder / VARYING)
    return config_in(tmp_path, folder, format=())


def clipped(config: CaptionConfig, *names: str, **more: Any) -> RunResult:
    return run(config, trainer=names, **{"clip_frames": FRAMES, **more})


def videos_in(out: Path, form: str) -> list[Path]:
    return [Path(path) for path in READERS[form](out)]


def header(path: Path) -> tuple[float, int]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return float(stream.average_rate or 0), stream.frames


def of_source(path: Path, names: list[str]) -> str:
    return next(name for name in names if path.stem.startswith(Path(name).stem))


def assert_whole(picks: list[int], path: Path, target: float) -> None:
    """Assert that the trainer takes FRAMES frames, begins with the first, and leaves less than a
    step of its rate."""
    rate, _ = header(path)
    numbers = numbers_in(path)
    assert len(picks) == FRAMES and picks[0] == 0
    assert (len(numbers) - 1 - picks[-1]) / rate < 1 / min(target, rate) - 1e-6


@pytest.mark.parametrize("model", ["wan", "hunyuan-video"])
def test_musubi_takes_each_clip_whole(config: CaptionConfig, model: str) -> None:
    clipped(config, f"musubi:{model}")
    out, target = Path(config.out), MODELS["musubi"][model].fps
    datasets = tomllib.loads((out / "musubi" / "dataset.toml").read_text())["datasets"]
    seen = 0
    for dataset in datasets:
        for line in Path(dataset["video_jsonl_file"]).read_text().splitlines():
            path = Path(json.loads(line)["video_path"])
            rate, frames = header(path)
            assert_whole(musubi_full(frames, dataset, target), path, target)
            if of_source(path, [*RATES, VARYING]) == VARYING:
                assert (rate, frames) == (target, FRAMES)
            seen += 1
    assert seen == len(lines(config)) >= 2 * len(RATES)


@pytest.mark.parametrize(("model", "target"), [("wan", 16), ("hunyuan-video", 24)])
def test_diffusion_pipe_takes_each_clip_whole(
    config: CaptionConfig, model: str, target: int
) -> None:
    clipped(config, f"diffusion-pipe:{model}")
    out = Path(config.out)
    buckets = tomllib.loads((out / "diffusion-pipe" / "dataset.toml").read_text())["frame_buckets"]
    assert buckets == [1, FRAMES]
    paths = videos_in(out, "diffusion-pipe")
    assert len(paths) == len(lines(config))
    for path in paths:
        rate, frames = header(path)
        assert diffusion_pipe_takes(frames, rate, target, buckets) == FRAMES
        assert frames - 1 < FRAMES * rate / target, "one frame less would not do"


def test_ltx_gets_copies_at_its_rate_and_others_do_not(config: CaptionConfig) -> None:
    result = clipped(config, "ltx:ltx2", "musubi:hunyuan-video")
    out = Path(config.out)
    for path in videos_in(out, "ltx"):
        assert header(path) == (24, FRAMES)
        numbers = numbers_in(path)
        assert len(numbers) == FRAMES and numbers == sorted(numbers)
    assert any('--resolution-buckets "' in note and "x17" in note for note in result.warnings)
    rates = {header(path)[0] for path in videos_in(out, "musubi")}
    assert rates == {float(rate) for rate in RATES.values()} | {24.0}


def test_musubi_gets_as_many_frames_of_a_slower_video_as_it_has(tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    write(folder / "slow.mp4", Fraction(12), 40)
    config = config_in(tmp_path, folder, format=())
    clipped(config, "musubi:wan")
    toml = (Path(config.out) / "musubi" / "dataset.toml").read_text()
    assert "source_fps" not in toml
    assert [numbers_in(path) for path in videos_in(Path(config.out), "musubi")] == [
        [*range(17)],
        [*range(17, 34)],
    ]


def test_a_second_run_makes_nothing_again(config: CaptionConfig) -> None:
    names = ("ltx:ltx2", "musubi:hunyuan-video")
    clipped(config, *names, clip_rest="overlap", shots=True)
    before = {path: path.stat().st_mtime_ns for path in Path(config.out, "clips").iterdir()}
    stages = Saying()
    run(config, stages, trainer=names, clip_frames=FRAMES, clip_rest="overlap", shots=True)
    assert stages.names() == []
    assert {path: path.stat().st_mtime_ns for path in Path(config.out, "clips").iterdir()} == before


def test_what_is_left_out_is_counted_and_named(config: CaptionConfig) -> None:
    write(Path(config.sources[0]) / "a.mp4", Fraction(30), 20)
    result = clipped(config, "musubi:wan")
    (note,) = (note for note in result.warnings if note.startswith("left out, shorter than 17"))
    rests = {name: round(2.5 * float(rate)) for name, rate in RATES.items()}
    spans = sum(bool(frames % needed(FRAMES, RATES[name], 16)) for name, frames in rests.items())
    assert f"{spans + 2} spans of {spans + 2} videos" in note, "those of varying.mp4 and a.mp4"
    assert "0.00 to 0.67 s of a.mp4" in note and "videos without any clip: 1 (a.mp4)" in note
    assert "--clip-rest overlap" in note and result.exit_code == 0
    assert note in load_record(Path(config.out)).plan.notes, "which the report shows"
    result = clipped(config, "musubi:wan", clip_rest="overlap")
    (note,) = (note for note in result.warnings if note.startswith("left out, shorter than 17"))
    assert "1 span of 1 video" in note and "--clip-rest" not in note


def test_files_of_one_clip_stand_unless_a_trainer_needs_another_rate(tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    write(folder / "exact.mp4", Fraction(30), needed(FRAMES, Fraction(30), 24))
    config = config_in(tmp_path, folder, format=())
    result = clipped(config, "ltx:ltx2", "musubi:hunyuan-video")
    assert videos_in(Path(config.out), "musubi") == [folder / "exact.mp4"]
    (copy,) = videos_in(Path(config.out), "ltx")
    assert header(copy) == (24, FRAMES)
    assert any("another rate than the trainer's 1" in note for note in result.warnings)


def test_sets_without_a_model_fit_the_clips_too(config: CaptionConfig) -> None:
    run(config, format=("musubi", "diffusion-pipe"), clip_frames=FRAMES, clip_fps=24.0)
    for form, says in (("musubi", f"target_frames = [{FRAMES}]"), ("diffusion-pipe", "[1, 17]")):
        assert says in Path(config.out, form, "dataset.toml").read_text()


def test_captions_of_clips_are_found_by_their_names(config: CaptionConfig, tmp_path: Path) -> None:
    """Whoever trains on a copy of the clips has the prompt of the run for each."""
    clipped(config, "ltx:ltx2", "musubi:hunyuan-video")
    out = Path(config.out)
    data = out / "clips" / "captions.jsonl"
    rows = [{"path": path.name, "caption": "x"} for path in sorted((out / "clips").glob("*.mp4"))]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    examples = examples_in(str(data))
    assert len(examples) == len(rows) > 20
    assert {example.prompt for example in examples} == {lines(config)[0]["prompt"]}


@pytest.mark.parametrize(
    ("options", "says", "hint"),
    [
        ({"clip_frames": 80, "trainer": ("musubi:wan",)}, "a multiple of 4", "77 or 81"),
        ({"clip_frames": 2, "trainer": ("musubi:wan",)}, "a multiple of 4", "Give 5"),
        ({"clip_frames": 81, "trainer": ("musubi:framepack",)}, "of 36", "73 or 109"),
        ({"clip_frames": 85, "trainer": ("diffusion-pipe:ltx2",)}, "of 8", "81 or 89"),
        ({"clip_frames": 81}, "is not known", "--clip-fps"),
        ({"clip_frames": 81, "trainer": ("ltx:ltx2",)}, "is not known", "--clip-fps"),
        (
            {"clip_frames": 81, "clip_fps": 24.0, "trainer": ("musubi:wan",)},
            "--clip-fps 24 and musubi:wan 16",
            "Leave --clip-fps out",
        ),
        (
            {"clip_frames": 81, "trainer": ("musubi:wan", "diffusion-pipe:ltx2")},
            "musubi:wan 16 and diffusion-pipe:ltx2 24",
            "its own --out",
        ),
        ({"clip_frames": 1, "clip_fps": 30.0}, "0.0333333 s at 30", "0.1 s or more"),
        ({"clip_frames": 0}, "invalid --clip-frames 0", "above 0"),
        ({"clip_frames": 81, "clip_fps": 0.0}, "invalid --clip-fps 0", "above 0"),
        ({"clip_frames": 81, "clip_rest": "keep"}, "unknown --clip-rest keep", "drop, overlap"),
        ({"clip_frames": 81, "chunk": 5.0}, "--clip-frames and --chunk exclude", "Leave one"),
        ({"clip_frames": 10**9, "clip_fps": 16.0}, "invalid --clip-frames", "10000"),
        ({"clip_fps": 16.0}, "--clip-fps is about clips of --clip-frames", "Give both"),
        ({"clip_rest": "overlap"}, "--clip-rest is about clips of", "Give both"),
        (
            {"clip_frames": 80, "clip_fps": 16.0, "format": ("musubi",)},
            "musubi:any model takes one frame more than a multiple of 4",
            "Give 77 or 81",
        ),
        ({"clip_frames": 81, "whole": True}, "--clip-frames and --whole exclude", "Leave one"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], says: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        CaptionConfig(sources=("a",), **options)
    assert says in caught.value.message and hint in (caught.value.hint or "")
    assert caught.value.exit_code == 2


def test_models_of_pictures_get_no_clips(config: CaptionConfig) -> None:
    notes = clipped(config, "diffusion-pipe:flux", clip_fps=16.0).warnings
    assert any("flux is trained on pictures" in note for note in notes)


def test_a_set_for_another_rate_keeps_its_frames(config: CaptionConfig) -> None:
    """It is of an earlier run into the folder."""
    clipped(config, "musubi:wan")
    clipped(config, "diffusion-pipe:hunyuan-video")
    toml = Path(config.out, "musubi", "dataset.toml").read_text()
    assert "max_frames = 81" in toml and "max_frames = 17" not in toml
