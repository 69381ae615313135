"""Where larger frames are more tokens, a context bounds those of large videos alone: the small ones
beside them keep frames and keys."""

import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from flows.cli.main import main
from tests.support.families import checkpoint
from tests.support.inside import Ran, run_inside
from tests.support.media import write_video
from tests.support.pipeline import Place

pytestmark = pytest.mark.slow

LINE = "3 frames of 160x160 fit its context of 1,024 tokens, of 8; --max-pixels 11008 shows them"
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
    assert plan["frames"] == 11 and LINE in plan["notes"][-1]

    first, frames = run(place)
    assert frames == {"large.mp4": 3, "small.mp4": 8}
    assert first.said.count(LINE) == 1
    assert LINE in json.loads((place.out / "run.json").read_text())["plan"]["notes"][-1]
    assert run(place, prompt="ho")[0].started == ["decode"]
    assert run(place, max_new_tokens=7)[0].started == ["decode"]
    again, frames = run(place)
    assert again.started == [] and frames == {"large.mp4": 3, "small.mp4": 8}
    assert main(["plan", *where, *words]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["frames"] == 11 and LINE in plan["notes"][-1]

    stock, frames = run(place, as_published=False)
    assert frames == {"large.mp4": 8, "small.mp4": 8}
    assert stock.started == ["describe", "frames", "encode", "decode"]
    assert place.stages()["encode"]["items"] == 1, "the small one is there"
    assert "8 frames of 160x160 in a chunk exceed its context" in stock.said
    warnings = {each["media_path"]: each["warnings"] for each in place.captions()}
    assert warnings == {
        "large.mp4": ["its 8 frames exceed the model's context of 1,024 tokens, in which 3 fit"],
        "small.mp4": [],
    }


def test_all_frames_are_shown_at_the_pixels_that_are_proposed(place: Place) -> None:
    ran, frames = run(place, max_pixels=11008)
    assert frames == {"large.mp4": 8, "small.mp4": 8} and "fit its context" not in ran.said
