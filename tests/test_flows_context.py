"""A model whose context holds two of a chunk's fourteen frames is shown two, and says so. Words
that do not fit beside them are refused before anything is encoded."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import UsageError
from flows.cli.main import main
from flows.job.prepare import prepare_without_media
from flows.pipelines import CAPTION
from flows.serving.config import ServeConfig
from flows.serving.plans import decoding_call
from penstock_demo import CLIPS
from tests.support.families import checkpoint
from tests.support.inside import InsideLauncher, run_inside
from tests.support.pipeline import Place

LINE = "2 frames of a chunk fit its context of 64 tokens, of 32; --chunk 0.5 shows them all"
FITS = "frames of a chunk fit its context"
FITTING = {"fps": 4.0, "prompt": "hi", "max_new_tokens": 8}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """LLaVA with 64 positions, and a clip of 14 frames at 4 a second."""
    folder = tmp_path_factory.mktemp("context")
    model = folder / "llava"
    shutil.copytree(checkpoint("llava"), model)
    config = json.loads((model / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 64
    (model / "config.json").write_text(json.dumps(config))
    clip = CLIPS / "clip-08.mp4"
    yield Place(clips=clip, out=folder / "out", store=folder / "store", model=str(model))


def test_fewer_frames_are_shown_whatever_is_asked(place: Place) -> None:
    first = run_inside(place, **FITTING)
    assert first.started == ["describe", "frames", "encode", "decode"] and LINE in first.said
    (caption,) = place.captions()
    assert caption["frames"] == [0.0, 1.7] and caption["warnings"] == []
    record = json.loads((place.out / "run.json").read_text())["plan"]
    assert record["sampling"]["max_frames"] == 2
    assert [note for note in record["notes"] if LINE in note]
    assert run_inside(place, **{**FITTING, "prompt": "ho"}).started == ["decode"]
    assert run_inside(place, **{**FITTING, "max_new_tokens": 7}).started == ["decode"]


def test_the_plan_says_the_same(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--fps", "4", "--prompt", "hi", "--max-new-tokens", "8", "--json"]
    where = ["--model", place.model, "--store", str(place.store)]
    assert main(["plan", str(place.clips), *where, *words]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["frames"], plan["sampling"]["max_frames"]) == (2, 2)
    assert [note for note in plan["notes"] if LINE in note]
    assert main(["plan", *where, *words]) == 0
    assert [note for note in json.loads(capsys.readouterr().out)["notes"] if LINE in note]


@pytest.mark.parametrize("verb", ["plan", "caption"])
def test_words_that_do_not_fit_are_refused_with_the_limit_that_does(
    verb: str, place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """64 less two frames of 17 tokens, 19 of the template and 2 of the prompt leave 9."""
    where = ["--model", place.model, "--store", str(place.store)]
    where += ["--out", str(tmp_path / "out")] if verb == "caption" else []
    words = ["--fps", "5", "--prompt", "hi", "--max-new-tokens", "10"]
    assert main([verb, str(place.clips), *where, *words]) == 2
    said = capsys.readouterr().err
    assert "there is no room for an answer of 10. Give --max-new-tokens 9, or less" in said
    assert "cutting" not in said and "encoding" not in said


def test_a_prompt_of_one_file_that_is_too_long_does_not_end_the_others(
    place: Place, tmp_path: Path
) -> None:
    def planned(*prompts: str) -> int:
        lines = [json.dumps({"path": str(place.clips), "prompt": prompt}) for prompt in prompts]
        (tmp_path / "list.jsonl").write_text("\n".join(lines))
        where = ["--model", place.model, "--store", str(place.store), "--fps", "4"]
        return main(["plan", str(tmp_path / "list.jsonl"), *where, "--max-new-tokens", "8"])

    assert planned("hi", "w" * 60) == 0
    assert planned("v" * 60, "w" * 60) == 2


def test_a_server_decodes_as_many_frames_of_a_clip(place: Place) -> None:
    serving = ServeConfig(caption_model=place.model, store=str(place.store))
    config = replace(serving.caption_config(), out=str(place.out))
    job = prepare_without_media(config, InsideLauncher(), CAPTION)
    call = decoding_call(job, serving, str(place.store))("pipe")
    assert call.arguments["sampling"]["max_frames"] == 2


def test_as_stock_shows_all_and_warns(place: Place, tmp_path: Path) -> None:
    place = Place(clips=place.clips, out=tmp_path, store=place.store, model=place.model)
    ran = run_inside(place, **FITTING, as_published=False)
    assert "32 frames of a chunk exceed its context of 64 tokens, in which 2 fit" in ran.said
    (caption,) = place.captions()
    assert len(caption["frames"]) == 14 and caption["caption"]
    assert caption["warnings"] == [
        "its 14 frames exceed the model's context of 64 tokens, in which 2 fit"
    ]


def test_one_frame_that_does_not_fit_is_refused(place: Place, tmp_path: Path) -> None:
    model = tmp_path / "llava"
    shutil.copytree(place.model, model)
    config = json.loads((model / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 20
    (model / "config.json").write_text(json.dumps(config))
    less = Place(clips=place.clips, out=tmp_path / "o", store=tmp_path / "s", model=str(model))
    with pytest.raises(UsageError, match=r"one frame is 17 tokens to .* room for 15") as raised:
        run_inside(less, **FITTING)
    assert raised.value.exit_code == 2


def test_the_advice_to_allow_longer_answers_stays_within_the_context(
    place: Place, tmp_path: Path
) -> None:
    """9 tokens are left for an answer; as stock, 14 frames exceed the context by themselves."""

    def advice(**options: Any) -> list[str]:
        where = Place(clips=place.clips, out=tmp_path, store=place.store, model=place.model)
        ran = run_inside(where, **{**FITTING, **options})
        return [line for line in ran.result.warnings if "in the middle" in line]

    (line,) = advice(max_new_tokens=2)
    assert "--max-new-tokens 4 makes those anew" in line
    (line,) = advice(max_new_tokens=6)
    assert "--max-new-tokens 9 makes those anew" in line
    (line,) = advice(max_new_tokens=9)
    assert line.endswith("in the middle: the model's context has no room for longer ones")
    (line,) = advice(max_new_tokens=6, as_published=False)
    assert line.endswith("no room for longer ones")


def test_a_video_that_loses_no_frames_is_not_told_of(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """14 frames at 4 a second; 4 at one."""
    model = tmp_path / "llava"
    shutil.copytree(place.model, model)
    config = json.loads((model / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 300
    (model / "config.json").write_text(json.dumps(config))
    where = Place(
        clips=place.clips, out=tmp_path / "out", store=tmp_path / "store", model=str(model)
    )

    def told(**options: Any) -> list[bool]:
        said = run_inside(where, **{**FITTING, **options}).said
        notes = json.loads((where.out / "run.json").read_text())["plan"]["notes"]
        asked = [f"--{name}={value}" for name, value in options.items()]
        asked += ["--prompt", "hi", "--max-new-tokens", "8", "--store", str(where.store)]
        assert main(["plan", str(where.clips), "--model", where.model, *asked]) == 0
        told = [said, "\n".join(notes), capsys.readouterr().out]
        return [f"{FITS} of 300 tokens" in " ".join(each.split()) for each in told]

    assert told(fps=1.0) == [False, False, False]
    assert told(fps=4.0) == [True, True, True]
    assert told(fps=4.0) == [True, True, True], "all is there"
    assert told(fps=4.0, chunk=3.25) == [False, False, False]


def test_as_stock_warns_of_words_and_answers_that_exceed_the_context(
    place: Place, tmp_path: Path
) -> None:
    """Two frames of 17 tokens, 19 of the template and 2 of the prompt: 9 are left."""
    where = Place(clips=place.clips, out=tmp_path, store=place.store, model=place.model)

    def warnings(**options: Any) -> list[str]:
        run_inside(where, **{**FITTING, "max_frames": 2, **options}, as_published=False)
        (caption,) = where.captions()
        answers.append(caption["tokens"])
        return list(caption["warnings"])

    answers: list[int] = []
    exceeding = "its 2 frames (34), prompt (21) and answer (12) exceed the model's context of 64"
    assert warnings(max_new_tokens=9) == []
    assert warnings(max_new_tokens=12) == [f"{exceeding} tokens"]
    assert warnings(max_new_tokens=4, prompt="w" * 60)[0].startswith("its 2 frames (34), prompt (")
    assert answers == [9, 12, 4]
