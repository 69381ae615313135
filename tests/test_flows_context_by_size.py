"""Where larger frames are more tokens, a context bounds those of large videos alone: the small ones
beside them keep frames and keys."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from artifacts.schema import ChunkIndex, MediaIndex
from flows.cli.main import main
from flows.job.prepare import prepare_without_media
from flows.job.tasks import Medium
from flows.pipelines import CAPTION
from flows.running.calls import Calls
from flows.serving.config import ServeConfig
from flows.serving.frame_source import FrameSource
from flows.serving.keeping import RecordKeeper
from flows.serving.scratch import Scratch
from tests.support.families import checkpoint
from tests.support.inside import InsideLauncher, Ran, run_inside
from tests.support.media import write_video
from tests.support.pipeline import Place

pytestmark = pytest.mark.slow

LINE = "2 frames of 160x160 fit its context of 1,024 tokens, of 8; --max-pixels 11008 shows them"
FITTING: dict[str, Any] = {"fps": 4.0, "prompt": "hi", "max_new_tokens": 8}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Qwen2.5-VL that sees frames as large as they are, one token for 128 pixels of two of them,
    with 1,024 positions; videos of 8 frames at 4 a second, 32 and 200 tokens each."""
    folder = tmp_path_factory.mktemp("by-size")
    model, clips = folder / "qwen", folder / "clips"
    shutil.copytree(checkpoint("qwen2_5_vl"), model)
    config = json.loads((model / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 1024
    (model / "config.json").write_text(json.dumps(config))
    processor = json.loads((model / "processor_config.json").read_text())
    processor["video_processor"]["size"]["longest_edge"] = 1 << 22
    (model / "processor_config.json").write_text(json.dumps(processor))
    clips.mkdir()
    write_video(clips / "large.mp4", ticks=range(60), size=(160, 160))
    write_video(clips / "small.mp4", ticks=range(60), size=(64, 64))
    yield Place(clips=clips, out=folder / "out", store=folder / "store", model=str(model))


def run(place: Place, **options: Any) -> tuple[Ran, dict[str, int]]:
    """What a run did, and how many frames each caption is of."""
    ran = run_inside(place, **{**FITTING, **options})
    return ran, {each["media_path"]: len(each["frames"]) for each in place.captions()}


def test_large_frames_are_fewer_and_small_ones_keep_their_keys(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--fps", "4", "--prompt", "hi", "--max-new-tokens", "8", "--json"]
    where = [str(place.clips), "--model", place.model, "--store", str(place.store)]
    assert main(["plan", *where, *words]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["frames"] == 10 and LINE in plan["notes"][-1]

    first, frames = run(place)
    assert frames == {"large.mp4": 2, "small.mp4": 8}
    assert first.said.count(LINE) == 1
    assert LINE in json.loads((place.out / "run.json").read_text())["plan"]["notes"][-1]
    assert run(place, prompt="ho")[0].started == ["decode"]
    assert run(place, max_new_tokens=7)[0].started == ["decode"]
    again, frames = run(place)
    assert again.started == [] and frames == {"large.mp4": 2, "small.mp4": 8}
    assert main(["plan", *where, *words]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["frames"] == 10 and LINE in plan["notes"][-1]

    stock, frames = run(place, as_published=False)
    assert frames == {"large.mp4": 8, "small.mp4": 8}
    assert stock.started == ["describe", "frames", "encode", "decode"]
    assert place.stages()["encode"]["items"] == 1, "the small one is there"
    assert "8 frames of 160x160 in a chunk exceed its context" in stock.said
    warnings = {each["media_path"]: each["warnings"] for each in place.captions()}
    assert warnings == {
        "large.mp4": ["its 8 frames exceed the model's context of 1,024 tokens, in which 2 fit"],
        "small.mp4": [],
    }


def test_all_frames_are_shown_at_the_pixels_that_are_proposed(place: Place) -> None:
    ran, frames = run(place, max_pixels=11008)
    assert frames == {"large.mp4": 8, "small.mp4": 8} and "fit its context" not in ran.said


def test_a_server_shows_as_many_of_a_large_clip(place: Place, tmp_path: Path) -> None:
    serving = ServeConfig(caption_model=place.model, store=str(place.store))
    config = replace(serving.caption_config(), out=str(place.out))
    job = prepare_without_media(config, InsideLauncher(), CAPTION)
    scratch, keeper = Scratch(tmp_path), RecordKeeper(lambda _: None)
    source = FrameSource(job, None, keeper, scratch)  # type: ignore[arg-type]
    times = tuple(0.25 * at for at in range(8))
    chunk = ChunkIndex(index=0, start=0.0, end=2.0, times=times, height=160, width=160)
    index = MediaIndex(kind="video", height=160, width=160, duration=2.0, chunks=(chunk,))
    medium = Medium(digest="d", path="a.mp4", kind="video", prompt="hi")
    (task,) = source.tasks(medium, index)
    assert task.chunk.times == (0.0, 1.0)
    assert Calls(job).member(job.pipeline[1], task)["shown"] == 2
    (small,) = source.tasks(medium, replace(index, chunks=(replace(chunk, height=64, width=64),)))
    assert "shown" not in Calls(job).member(job.pipeline[1], small)
