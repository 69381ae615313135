"""A model is shown as many of a chunk's frames as fit its context, and says so; words that do not
fit beside them are refused before anything is encoded. Where larger frames are more tokens, those
of large videos alone are fewer."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import UsageError
from artifacts.schema import ChunkIndex, MediaIndex
from flows.core.job.prepare import Job, prepare_without_media
from flows.core.ledger.tasks import Medium
from flows.core.options.serving import ServeConfig
from flows.core.pipelines import CAPTION
from flows.execution.stage_calls import StageCallBuilder
from flows.interfaces.cli.main import main
from flows.interfaces.serve.decoders import FrameSource
from flows.interfaces.serve.record_cache import RecordCacheFlusher
from flows.interfaces.serve.startup import decoding_call
from flows.interfaces.serve.temp_store import TempStore
from penstock_demo import CLIPS
from stages.process.job import job_fields
from tests.support.families import checkpoint
from tests.support.inside import InsideLauncher, run_inside
from tests.support.long_context import with_context
from tests.support.media import write_video
from tests.support.pipeline import Place

LINE = "2 frames of a chunk fit its context of 64 tokens, of 32; --chunk 0.5 shows them all"
FITTING: dict[str, Any] = {"fps": 4.0, "prompt": "hi", "max_new_tokens": 8}
WORDS = ["--fps", "4", "--prompt", "hi", "--max-new-tokens", "8"]


def place_in(folder: Path, model: Path | str, clips: Path = CLIPS / "clip-08.mp4") -> Place:
    """By default of a clip of 14 frames at 4 a second."""
    return Place(clips=clips, out=folder / "out", store=folder / "store", model=str(model))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("context")
    return place_in(folder, with_context(checkpoint("llava"), 64, folder / "llava"))


def of(place: Place) -> list[str]:
    return ["--model", place.model, "--store", str(place.store)]


@pytest.mark.slow
def test_fewer_frames_are_shown_whatever_is_asked(place: Place, tmp_path: Path) -> None:
    place = place_in(tmp_path, place.model)
    first = run_inside(place, **FITTING)
    assert first.started == ["describe", "frames", "encode", "decode"] and LINE in first.said
    (caption,) = place.captions()
    assert caption["frames"] == [0.0, 1.7] and caption["warnings"] == []
    record = json.loads((place.out / "run.json").read_text())["plan"]
    assert record["sampling"]["max_frames"] == 2
    assert [note for note in record["notes"] if LINE in note]
    assert run_inside(place, **{**FITTING, "prompt": "ho"}).started == ["decode"]
    assert run_inside(place, **{**FITTING, "max_new_tokens": 7}).started == ["decode"]


@pytest.mark.slow
def test_the_plan_says_the_same(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(place.clips), *of(place), *WORDS, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["frames"], plan["sampling"]["max_frames"]) == (2, 2)
    assert [note for note in plan["notes"] if LINE in note]
    assert main(["plan", *of(place), *WORDS, "--json"]) == 0
    assert [note for note in json.loads(capsys.readouterr().out)["notes"] if LINE in note]


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["plan", "caption"])
def test_words_that_do_not_fit_are_refused_with_the_limit_that_does(
    verb: str, place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """64 less two frames of 17 tokens, 19 of the template and 2 of the prompt leave 9."""
    out = ["--out", str(tmp_path / "out")] if verb == "caption" else []
    words = ["--fps", "5", "--prompt", "hi", "--max-new-tokens", "10"]
    assert main([verb, str(place.clips), *of(place), *out, *words]) == 2
    printed = capsys.readouterr().err
    assert "an answer of 10 does not fit. Give --max-new-tokens 9 or less" in printed
    assert "cutting" not in printed and "encoding" not in printed


def test_a_prompt_of_one_file_that_is_too_long_does_not_end_the_others(
    place: Place, tmp_path: Path
) -> None:
    def planned(*prompts: str) -> int:
        lines = [json.dumps({"path": str(place.clips), "prompt": prompt}) for prompt in prompts]
        (tmp_path / "list.jsonl").write_text("\n".join(lines))
        return main(["plan", str(tmp_path / "list.jsonl"), *of(place), *WORDS[:2], *WORDS[4:]])

    assert planned("hi", "w" * 60) == 0
    assert planned("v" * 60, "w" * 60) == 2


def job_of(place: Place, serving: ServeConfig) -> Job:
    config = replace(serving.caption_config(), out=str(place.out))
    return prepare_without_media(config, InsideLauncher(), CAPTION)


def test_a_server_decodes_as_many_frames_of_a_clip(place: Place) -> None:
    serving = ServeConfig(caption_model=place.model, store=str(place.store))
    call = decoding_call(job_of(place, serving), serving, str(place.store))("pipe")
    assert job_fields(call.job)["sampling"]["max_frames"] == 2


@pytest.mark.slow
def test_one_frame_that_does_not_fit_is_refused(place: Place, tmp_path: Path) -> None:
    less = place_in(tmp_path, with_context(place.model, 20, tmp_path / "llava"))
    with pytest.raises(UsageError, match=r"one frame takes 17 tokens of .* room for 15") as raised:
        run_inside(less, **FITTING)
    assert raised.value.exit_code == 2


@pytest.mark.slow
def test_the_advice_to_allow_longer_answers_stays_within_the_context(
    place: Place, tmp_path: Path
) -> None:
    """9 tokens are left for an answer."""

    def advice(**options: Any) -> list[str]:
        ran = run_inside(replace(place, out=tmp_path), **{**FITTING, **options})
        return [line for line in ran.result.warnings if "reached the limit" in line]

    (line,) = advice(max_new_tokens=2)
    assert "--max-new-tokens 4 regenerates only those" in line
    (line,) = advice(max_new_tokens=6)
    assert "--max-new-tokens 9 regenerates only those" in line
    (line,) = advice(max_new_tokens=9)
    assert line.endswith(": the model's context has no room for longer ones")


@pytest.mark.slow
def test_a_video_that_loses_no_frames_is_not_told_of(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """14 frames at 4 a second; 4 at one."""
    where = place_in(tmp_path, with_context(place.model, 300, tmp_path / "llava"))

    def message(*more: str) -> bool:
        assert main(["plan", str(where.clips), *of(where), *WORDS[2:], "--json", *more]) == 0
        notes = json.loads(capsys.readouterr().out)["notes"]
        return any("frames of a chunk fit its context of 300 tokens" in note for note in notes)

    for _ in range(2):  # the second time all is there
        assert "frames of a chunk fit its context of 300" in run_inside(where, **FITTING).said
    assert message("--fps", "4")
    assert not message("--fps", "1") and not message("--fps", "4", "--chunk", "3.25")
    assert "fit its context" not in run_inside(where, **{**FITTING, "chunk": 3.25}).said


@pytest.fixture(scope="module")
def sizes(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Qwen2.5-VL that sees frames as large as they are, one token for 128 pixels of two of them,
    with 1,024 positions; videos of 8 frames at 4 a second, 32 and 200 tokens each."""
    folder = tmp_path_factory.mktemp("by-size")
    model, clips = with_context(checkpoint("qwen2_5_vl"), 1024, folder / "qwen"), folder / "clips"
    processor = json.loads((model / "processor_config.json").read_text())
    processor["video_processor"]["size"]["longest_edge"] = 1 << 22
    (model / "processor_config.json").write_text(json.dumps(processor))
    clips.mkdir()
    write_video(clips / "large.mp4", ticks=range(60), size=(160, 160))
    write_video(clips / "small.mp4", ticks=range(60), size=(64, 64))
    return place_in(folder, model, clips)


@pytest.mark.slow
def test_a_server_shows_as_many_of_a_large_clip(sizes: Place, tmp_path: Path) -> None:
    serving = ServeConfig(caption_model=sizes.model, store=str(sizes.store))
    job = job_of(sizes, serving)
    scratch, keeper = TempStore(tmp_path), RecordCacheFlusher(lambda _: None)
    source = FrameSource(job, None, keeper, scratch)  # type: ignore[arg-type]
    times = tuple(0.25 * at for at in range(8))
    chunk = ChunkIndex(index=0, start=0.0, end=2.0, times=times, height=160, width=160)
    index = MediaIndex(kind="video", height=160, width=160, duration=2.0, chunks=(chunk,))
    medium = Medium(digest="d", path="a.mp4", kind="video", prompt="hi")
    (task,) = source.tasks(medium, index)
    assert task.chunk.times == (0.0, 1.0)
    assert StageCallBuilder(job).encode_item(job.pipeline[1], task).shown == 2
    (small,) = source.tasks(medium, replace(index, chunks=(replace(chunk, height=64, width=64),)))
    assert StageCallBuilder(job).encode_item(job.pipeline[1], small).shown == 0
