"""Data sets that are set for the model of a trainer (`--trainer`), by the rules of its reader."""

import json
import re
import tomllib
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import UsageError
from artifacts.texts.trainer_models import MODELS, form_of
from artifacts.texts.trainers import (
    TRAINERS,
    TrainerEntry,
    TrainerSetup,
    musubi_takes,
    taken_frames,
)
from flows.commands.shared.arguments import config_of
from flows.commands.shared.parser import parse
from flows.core.options.commands import CaptionConfig
from flows.core.options.formats import TRAINER_FORMATS
from flows.interfaces.cli.main import main
from flows.outputs.run_result import RunResult
from tests.support.media import write_video
from tests.support.rows import caption
from tests.support.saying import make, run
from tests.support.trainers import (
    READERS,
    diffusion_pipe_takes,
    kohya_bucket,
    musubi_full,
)

RATES = (24000 / 1001, 24.0, 25.0, 30000 / 1001, 30.0, 50.0, 60.0)
VIDEO_MODELS = [
    (trainer, model)
    for trainer in ("musubi", "diffusion-pipe")
    for model in MODELS[trainer].values()
    if model.frames
]


def video(rate: float, frames: int, size: tuple[int, int] = (640, 360)) -> TrainerEntry:
    rows, path = (caption("a red circle"),), f"/videos/{rate:.3f}-{frames}.mp4"
    return TrainerEntry(
        kind="video", path=path, rows=rows, size=size, rate=round(rate, 3), frames=frames
    )


def picture(width: int, height: int) -> TrainerEntry:
    rows = (caption("a red circle"),)
    return TrainerEntry(kind="image", path="/a.jpg", rows=rows, size=(width, height))


def toml_of(trainer: str, entries: list[TrainerEntry], model: str = "") -> dict[str, Any]:
    setup = TrainerSetup(model=MODELS[trainer][model] if model else None)
    return tomllib.loads(TRAINERS[trainer].write(entries, Path("/out"), setup)["dataset.toml"])


@pytest.mark.parametrize(("model", "share"), [("sdxl", 0.95), ("sd1.5", 0.93), ("", 0.95)])
@pytest.mark.parametrize("size", [(3000, 2000), (2000, 3000), (1600, 1200), (4000, 2250)])
def test_wide_pictures_are_trained_at_the_resolution(
    model: str, share: float, size: tuple[int, int]
) -> None:
    """Without `max_bucket_reso` they were at 56 to 75 %."""
    (dataset,) = toml_of("kohya", [picture(*size)], model)["datasets"]
    wide, high = kohya_bucket(*size, dataset)
    assert wide * high >= share * dataset["resolution"] ** 2
    del dataset["max_bucket_reso"]
    wide, high = kohya_bucket(*size, dataset)
    assert model == "sd1.5" or wide * high < 0.8 * dataset["resolution"] ** 2


def test_each_rate_is_a_data_set_of_musubi_that_states_it() -> None:
    entries = [video(rate, 90) for rate in RATES]
    of_model, of_none = toml_of("musubi", entries, "wan"), toml_of("musubi", entries)
    for config in (of_model, of_none):
        rates = [dataset.get("source_fps") for dataset in config["datasets"]]
        slow = 24 if config is of_none else 0
        assert rates == [round(rate, 3) if rate >= slow else None for rate in RATES]
        assert all(rate is None or type(rate) is float for rate in rates), "its schema wants these"
        lists = [dataset["video_jsonl_file"] for dataset in config["datasets"]]
        caches = [dataset["cache_directory"] for dataset in config["datasets"]]
        assert len({*lists}) == len({*caches}) == len(RATES)
    slower = toml_of("musubi", [video(25.0, 90)], "framepack")["datasets"][0]
    assert "source_fps" not in slower, "it would count frames that it does not have"


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(("trainer", "model"), VIDEO_MODELS)
@pytest.mark.parametrize("seconds", [1.7, 4.0, 5.5, 30.0])
def test_a_trainer_takes_of_a_clip_what_it_has_up_to_the_model_s_frames(
    trainer: str, model: Any, rate: float, seconds: float
) -> None:
    entry = video(rate, round(seconds * rate))
    config = toml_of(trainer, [entry], model.name)
    if trainer == "musubi":
        (dataset,) = config["datasets"]
        picks = musubi_full(entry.frames, dataset, model.fps, model.step)
        taken, at = len(picks), min(rate, model.fps)
    else:
        taken = diffusion_pipe_takes(entry.frames, rate, model.fps, config["frame_buckets"])
        assert taken, "it was left out"
        at = model.fps
    most = min(seconds, model.frames / at)
    step = 2 * model.step / at  # it takes a multiple and one; a frame is kept in reserve
    assert most - step <= taken / at <= most + 1 / at
    ((_, expected, at_rate),) = taken_frames(trainer, [entry], model)
    assert expected / at_rate == pytest.approx(taken / at, abs=step)


def test_many_lengths_of_clips_are_few_buckets_and_none_is_left_out() -> None:
    entries = [video(30.0, frames) for frames in range(20, 300, 3)]
    buckets = toml_of("diffusion-pipe", entries, "wan")["frame_buckets"]
    assert len(buckets) <= 9 and buckets[0] == 1
    assert all(diffusion_pipe_takes(e.frames, 30.0, 16.0, buckets) for e in entries)


def test_a_file_says_what_is_not_set() -> None:
    for trainer in ("kohya", "musubi", "diffusion-pipe"):
        plain = TRAINERS[trainer].write([picture(64, 48)], Path("/o"), TrainerSetup())
        setup = TrainerSetup(model=next(iter(MODELS[trainer].values())), trigger="ohwx")
        named = TRAINERS[trainer].write([picture(64, 48)], Path("/o"), setup)["dataset.toml"]
        head = plain["dataset.toml"].split("\n")[1]
        assert head.startswith("# Not set: ") and f"--trainer {trainer}:MODEL" in head
        assert "Not set" not in named
        assert ("keep_tokens = 1" in named) == (trainer == "kohya")


@pytest.mark.parametrize(
    ("names", "says", "hint"),
    [
        (("kohya",), "the model is missing", "sdxl"),
        (("kohya:sdxl3",), "unknown model 'sdxl3'", "sdxl"),
        (("sdxl",), "unknown trainer", "videox-fun"),
        (("musubi:wan", "musubi:krea2"), "two models of musubi: wan and krea2", "its own --out"),
    ],
)
def test_a_wrong_name_is_refused_with_those_that_there_are(
    names: tuple[str, ...], says: str, hint: str
) -> None:
    with pytest.raises(UsageError) as caught:
        CaptionConfig(sources=("a",), trainer=names)
    assert says in caught.value.message and hint in (caught.value.hint or "")


def test_a_trainer_adds_the_format_that_it_reads() -> None:
    for trainer, models in MODELS.items():
        name = f"{trainer}:{next(iter(models))}"
        config = CaptionConfig(sources=("a",), trainer=(name,), format=("csv",))
        assert config.format == ("csv", form_of(trainer))
        assert form_of(trainer) == (trainer if trainer in TRAINER_FORMATS else "txt")


def test_clips_that_framepack_would_end_at_are_left_out() -> None:
    """It takes each frame of a slower clip once."""
    model = MODELS["musubi"]["framepack"]
    for rate, frames, fits in ((25.0, 34, False), (12.0, 36, False), (25.0, 37, True)):
        entry = video(rate, frames)
        (dataset,) = toml_of("musubi", [entry], "framepack")["datasets"]
        assert (len(musubi_full(frames, dataset, 30.0)) >= 37) == fits
        assert (musubi_takes(entry, model) >= model.least) == fits
    for rate in (30.0, 48.0, 50.0, 59.94, 60.0):
        for frames in range(30, 130):
            (dataset,) = toml_of("musubi", [video(rate, frames)], "framepack")["datasets"]
            if musubi_takes(video(rate, frames), model) >= model.least:
                assert len(musubi_full(frames, dataset, 30.0)) >= 37, (rate, frames)


def test_videos_of_varying_rates_are_few_data_sets() -> None:
    entries = [video(rate, 90) for rate in (28.8, 29.0, 29.2, 29.396, 29.4, 29.96, 30.01)]
    datasets = toml_of("musubi", entries, "wan")["datasets"]
    assert [dataset["source_fps"] for dataset in datasets] == [29.0, 29.97, 30.0]


def test_a_trigger_of_several_parts_stays_first_whole() -> None:
    setup = TrainerSetup(trigger="ohwx, a photo")
    text = TRAINERS["kohya"].write([picture(64, 48)], Path("/o"), setup)["dataset.toml"]
    (dataset,) = tomllib.loads(text)["datasets"]
    assert dataset["subsets"][0]["keep_tokens"] == 2


def test_the_option_may_be_repeated() -> None:
    words = ["caption", "--trainer", "kohya:sdxl,ltx:ltx2", "--trainer", "musubi:wan", "a"]
    assert config_of(parse(words), CaptionConfig).trainer == (
        "kohya:sdxl",
        "ltx:ltx2",
        "musubi:wan",
    )
    same = CaptionConfig(sources=("a",), trainer=("kohya:sdxl", "kohya:sdxl"))
    assert same.format == ("kohya",)


@pytest.fixture
def config(tmp_path: Path) -> CaptionConfig:
    made = make(tmp_path)
    write_video(
        Path(made.sources[0], "slow.mp4"), ticks=range(40), time_base=Fraction(1, 12), size=(48, 64)
    )
    return made


def write(config: CaptionConfig, *names: str, **more: Any) -> RunResult:
    return run(config, trainer=names, recursive=True, **more)


def test_a_later_run_keeps_the_models_of_its_folder(config: CaptionConfig) -> None:
    toml = Path(config.out) / "musubi" / "dataset.toml"
    write(config, "musubi:wan")
    assert READERS["musubi"](Path(config.out))
    first = toml.read_text()
    assert "max_frames = 81" in first and "source_fps = 12.0" not in first
    write(config, prompt="Other?")
    assert toml.read_text() == first
    write(config, "kohya:sdxl", "musubi:hunyuan-video")
    assert "max_frames = 129" in toml.read_text()
    assert (Path(config.out) / "kohya" / "dataset.toml").is_file()


def test_files_of_rates_that_are_gone_are_removed(config: CaptionConfig) -> None:
    folder = Path(config.out) / "musubi"
    write(config, "musubi:wan")
    assert {"videos-12fps.jsonl", "videos-30fps.jsonl"} <= {path.name for path in folder.iterdir()}
    Path(config.sources[0], "slow.mp4").unlink()
    write(config, replace=True)
    assert not (folder / "videos-12fps.jsonl").exists()
    lines = (folder / "videos-30fps.jsonl").read_text().splitlines()
    assert lines and all(Path(json.loads(line)["video_path"]).exists() for line in lines)


def test_an_edited_file_is_kept_and_a_note_says_what_would_be_set(config: CaptionConfig) -> None:
    toml = Path(config.out) / "kohya" / "dataset.toml"
    write(config, format=("kohya",))
    mine = re.sub("max_bucket_reso.*\n", "", toml.read_text().replace("1024", "768"))
    toml.write_text(mine)
    notes = write(config, "kohya:sdxl").warnings
    assert toml.read_text() == mine
    (note,) = (note for note in notes if "would set" in note)
    assert note.endswith(f"would set in {toml}: max_bucket_reso = 2048")


def test_lists_that_an_edited_file_does_not_name_are_named(config: CaptionConfig) -> None:
    toml = Path(config.out) / "musubi" / "dataset.toml"
    write(config, "musubi:wan")
    toml.write_text(toml.read_text().replace("960, 544", "640, 352"))
    Path(config.sources[0], "slow.mp4").unlink()
    write_video(Path(config.sources[0], "fast.mp4"), ticks=range(90), time_base=Fraction(1, 60))
    notes = write(config, replace=True).warnings
    assert any("does not name videos-60fps.jsonl" in note for note in notes)
    assert any("names videos-12fps.jsonl, which is not written any more" in n for n in notes)
    assert not any("would set" in note for note in notes), "the resolution is the user's"
    toml.write_text('[[datasets]]\nvideo_jsonl_file = ["a", 5]\n[x]\ny = 1979-05-27\n')
    notes = write(config, replace=True).warnings
    assert any(
        "does not name images.jsonl, videos-30fps.jsonl, videos-60fps" in note for note in notes
    )
    toml.write_text("x = [")
    notes = write(config, replace=True).warnings
    assert any("cannot be read as TOML" in note for note in notes)


def test_a_line_counts_clips_that_are_too_short_too_slow_or_cropped(
    config: CaptionConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = Path(config.sources[0])
    write_video(clips / "short.mp4", ticks=range(6))
    write_video(clips / "tall.mp4", ticks=range(90), size=(96, 32))
    notes = write(config, "musubi:wan", "diffusion-pipe:wan", "ltx:ltx2").warnings
    lines = {n.partition(": ")[0]: n for n in notes if "penstock check" in n}
    assert "2 wrong rate" in lines["musubi:wan"] and "1 one frame" in lines["musubi:wan"]
    assert "1 never trained" in lines["diffusion-pipe:wan"]
    assert "cropped" in lines["ltx:ltx2"]
    for name, line in lines.items():  # the command, which opens the media, counts the same
        assert main(["check", config.out, "--trainer", name]) == 1
        last = capsys.readouterr().out.strip().split("\n")[-1]
        said = {*re.findall(r"\d+ (?:wrong rate|never trained|one frame|cropped)", last)}
        assert said == {*re.findall(r"\d+ (?:wrong rate|never trained|one frame|cropped)", line)}


def test_other_clips_are_advised_only_where_it_would_help(config: CaptionConfig) -> None:
    write_video(Path(config.sources[0], "long.mp4"), ticks=range(300))
    for more, helps in (({}, True), ({"whole": True}, False), ({"media": "original"}, False)):
        notes = write(config, "musubi:wan", existing="replace", chunk=None, **more).warnings
        (note,) = (note for note in notes if "musubi:wan takes " in note)
        assert ("--clip-frames" in note) == helps


def test_notes_say_what_is_left_out_enlarged_and_not_seen(config: CaptionConfig) -> None:
    write_video(Path(config.sources[0], "long.mp4"), ticks=range(300))
    names = ("musubi:wan", "kohya:sdxl", "diffusion-pipe:flux", "ltx:ltx2")
    notes = write(config, *names, chunk=None).warnings
    assert any("musubi:wan takes " in note and "--clip-frames 81" in note for note in notes)
    assert any("kohya:sdxl: " in note and "1 small (penstock check" in note for note in notes)
    assert any("--resolution-buckets" in note for note in notes)
    assert any("not in diffusion-pipe" in n and "flux is trained on pictures" in n for n in notes)
    few = write(config, "musubi:framepack").warnings
    assert any("framepack takes none of fewer than 37 frames" in note for note in few)
