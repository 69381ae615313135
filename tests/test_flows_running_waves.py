"""What runs after what, seen with stages that answer at once: waves, batches, frames given back."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import flows.job.tasks
import flows.planning.sizes
import flows.running.sequence
from artifacts.errors import Interrupted
from artifacts.keys import digest_of, item_key
from artifacts.store import FolderStore
from flows.console.display import Display
from flows.job.config import CaptionConfig
from flows.job.prepare import Job
from flows.results.outputs import Written, write_outputs
from flows.running.run import caption
from tests.support.media import write_video
from tests.support.stand_ins import Stages, config_in


@pytest.fixture
def config(tmp_path: Path) -> CaptionConfig:
    """Five videos of one chunk each and a model of three files."""
    for number in range(5):
        ticks = range(10 + 15 * (number // 3))
        # Another distance of keyframes makes other bytes: equal files would be one item.
        write_video(tmp_path / "clips" / f"{number}.mp4", ticks=ticks, gop=5 + number)
    return config_in(tmp_path, tmp_path / "clips", batch_size=2)


@pytest.fixture(autouse=True)
def clips_folder(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()


def run(config: CaptionConfig, stages: Stages) -> int:
    return caption(config, Display(quiet=True), stages.launcher).captions


def test_one_wave_starts_each_stage_once(config: CaptionConfig) -> None:
    stages = Stages()
    assert run(config, stages) == 5
    assert stages.names() == ["frames", "encode", "decode"]


def test_the_next_wave_s_frames_are_cut_while_this_one_is_encoded(
    config: CaptionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # three short clips, or a longer one
    monkeypatch.setattr(flows.planning.sizes, "LARGEST_WAVE", 28_200)
    stages = Stages()
    assert run(config, stages) == 5
    wave = ["frames", "encode", "decode"]
    assert stages.names() == ["frames", *wave, *wave, "encode", "decode"]
    told = [len(c.arguments["media"]) for c in stages.calls if c.name == "frames"]
    assert told == [3, 1, 1]


def test_outputs_are_not_written_after_every_wave_of_a_large_run(
    config: CaptionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bool] = []

    def write(job: Job, *, last: bool) -> Written:
        written.append(last)
        return write_outputs(job, last=last)

    monkeypatch.setattr(flows.running.sequence, "write_outputs", write)
    monkeypatch.setattr(flows.running.sequence, "WRITING_SHARE", 10**9)
    monkeypatch.setattr(flows.planning.sizes, "LARGEST_WAVE", 1)
    stages = Stages()
    assert run(config, stages) == 5
    assert stages.names().count("decode") == 5
    assert written == [True]


def test_a_key_is_worked_out_once_a_run(
    config: CaptionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(config, Stages())
    asked: list[tuple[Any, ...]] = []

    def count(*parts: Any) -> str:
        asked.append(parts)
        return item_key(*parts)

    monkeypatch.setattr(flows.job.tasks, "item_key", count)
    assert run(config, Stages()) == 5
    assert len(asked) == len(set(asked)) == 3 * 5


def test_frames_are_given_back_after_encoding_unless_they_are_to_be_kept(
    config: CaptionConfig, tmp_path: Path
) -> None:
    assert run(config, Stages()) == 5
    assert list(FolderStore(tmp_path / "store").list("frames")) == []


def test_batches_hold_one_shape_and_follow_the_order_of_the_sources(config: CaptionConfig) -> None:
    stages = Stages()
    run(config, stages)
    assert [len(batch) for batch in stages.batches("encode")] == [2, 1, 2]
    assert [len(batch) for batch in stages.batches("decode")] == [2, 2, 1]


@pytest.mark.parametrize("stage", ["encode", "decode"])
def test_a_stopped_run_keeps_its_batches(config: CaptionConfig, stage: str) -> None:
    whole, stopped, resumed = Stages(), Stages(), Stages()
    stopped.stop_after[stage] = 2
    with pytest.raises(Interrupted):
        run(config, stopped)
    record = json.loads((Path(config.out) / "run.json").read_text())
    made = {s["name"]: (s["items"], s["before"]) for s in record["stages"]}
    assert record["state"] == "interrupted" and made[stage] == (2, 0)
    assert len((Path(config.out) / "captions.jsonl").read_text().splitlines()) == record["captions"]
    assert record["captions"] == (2 if stage == "decode" else 0)
    assert run(config, resumed) == 5
    told = stopped.batches(stage)
    assert resumed.batches(stage) == told[1:]
    run(replace(config, store=f"{config.store}-2"), whole)
    assert whole.batches(stage) == told
    if stage == "decode":
        assert resumed.names() == ["decode"]


def test_one_more_file_is_encoded_without_the_frames_of_the_others(
    config: CaptionConfig, tmp_path: Path
) -> None:
    run(config, Stages())
    write_video(tmp_path / "clips" / "5.mp4", ticks=range(9))
    more = Stages()
    assert run(config, more) == 6
    assert [len(batch) for batch in more.batches("encode")] == [1]
    assert more.calls[0].arguments["media"][0]["path"].endswith("5.mp4")


def test_a_chunk_that_the_model_refuses_fails_alone_until_it_is_retried(
    config: CaptionConfig,
) -> None:
    stages = Stages()
    stages.refuse_first = True
    result = caption(config, Display(quiet=True), stages.launcher)
    assert (result.captions, result.exit_code) == (4, 1)
    (failure,) = result.failures
    assert (failure.media_path, failure.stage, failure.error) == ("0.mp4", "encode", "refused")
    again = Stages()
    assert caption(config, Display(quiet=True), again.launcher).failures == [failure]
    assert again.names() == []
    retried = caption(replace(config, retry_failed=True), Display(quiet=True), again.launcher)
    assert (retried.captions, retried.failures) == (5, [])
    assert again.names() == ["frames", "encode", "decode"]


def test_two_runs_into_one_folder_are_refused(config: CaptionConfig, tmp_path: Path) -> None:
    from artifacts.errors import UsageError
    from stages.process.lock import try_hold

    (tmp_path / "out").mkdir()
    lock = try_hold(tmp_path / "out" / ".lock")
    assert lock is not None
    with lock, pytest.raises(UsageError, match="is captioning into"):
        run(config, Stages())


def test_beside_keeps_files_that_people_wrote(config: CaptionConfig, tmp_path: Path) -> None:
    def beside(**more: Any) -> list[str]:
        chosen = replace(config, format=("txt",), beside=True, **more)
        return caption(chosen, Display(quiet=True), Stages().launcher).warnings

    mine = tmp_path / "clips" / "0.txt"
    mine.write_text("by hand\n")
    (warning,) = beside()
    assert "0.txt" in warning and "--overwrite" in warning
    assert mine.read_text() == "by hand\n"
    assert (tmp_path / "clips" / "1.txt").read_text() == "something\n"
    assert beside(overwrite=True) == []
    assert mine.read_text() == "something\n"


def test_half_a_text_is_not_written(config: CaptionConfig, tmp_path: Path) -> None:
    write_video(tmp_path / "clips" / "0.mp4", ticks=range(75))
    cut = replace(config, format=("txt",), chunk=1.0, batch_size=1)
    stopped = Stages()
    stopped.stop_after["decode"] = 1
    with pytest.raises(Interrupted):
        run(cut, stopped)
    assert len((tmp_path / "out" / "captions.jsonl").read_text().splitlines()) == 1
    assert not (tmp_path / "out" / "0.txt").exists()
    run(cut, Stages())
    assert (tmp_path / "out" / "0.txt").read_text() == "something\n" * 3


def test_a_text_is_written_though_the_model_refuses_a_chunk_of_it(
    config: CaptionConfig, tmp_path: Path
) -> None:
    write_video(tmp_path / "clips" / "0.mp4", ticks=range(75))
    stages = Stages()
    stages.refuse_first = True
    run(replace(config, format=("txt",), chunk=1.0), stages)
    assert (tmp_path / "out" / "0.txt").read_text() == "something\n" * 2


def test_a_name_that_is_no_utf8_costs_no_output(config: CaptionConfig, tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path / "clips") + b"/caf\xe9.mp4"
    os.rename(tmp_path / "clips" / "0.mp4", odd)
    assert run(config, Stages()) == 5
    assert "caf\ufffd.mp4" in (tmp_path / "out" / "captions.jsonl").read_text()


def test_a_changed_language_half_keeps_the_features(config: CaptionConfig, tmp_path: Path) -> None:
    run(config, Stages())
    (tmp_path / "model" / "chat_template.jinja").write_text("another turn")
    again = Stages()
    run(config, again)
    assert again.names() == ["decode"]


def test_a_changed_processor_makes_the_features_anew(config: CaptionConfig, tmp_path: Path) -> None:
    run(config, Stages())
    (tmp_path / "model" / "preprocessor_config.json").write_text(digest_of("another"))
    again = Stages()
    run(config, again)
    assert again.names() == ["frames", "encode", "decode"]
