"""What runs after what, seen with stages that answer at once: waves, batches, frames given back."""

import json
import os
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import flows.ledger.tasks
import flows.planning.sizes
import flows.running.pipeline_runner
from artifacts.errors import Interrupted, UsageError
from artifacts.keys import digest_of
from artifacts.store import FolderStore
from flows.console.display import Display
from flows.job.prepare import Job
from flows.machine.launch import StageCall
from flows.options.commands import CaptionConfig
from flows.results.outputs import OutputCounts, write_outputs
from flows.running.run import caption
from stages.process.job import job_fields
from stages.process.lock import try_hold
from tests.support.media import write_video
from tests.support.pipeline import read_lines
from tests.support.stand_ins import Answer, Stages, config_in


@pytest.fixture
def config(tmp_path: Path) -> CaptionConfig:
    """Five videos of one chunk each and a model of three files."""
    (tmp_path / "clips").mkdir()
    for number in range(5):
        ticks = range(10 + 15 * (number // 3))
        # Another distance of keyframes makes other bytes: equal files would be one item.
        write_video(tmp_path / "clips" / f"{number}.mp4", ticks=ticks, gop=5 + number)
    return config_in(tmp_path, tmp_path / "clips", batch_size=2)


def run(config: CaptionConfig, stages: Stages) -> int:
    return caption(config, Display(quiet=True), stages.launcher).captions


def test_frames_are_cut_ahead(config: CaptionConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    # three short clips, or a longer one
    monkeypatch.setattr(flows.planning.sizes, "MAX_WAVE_BYTES", 28_200)
    stages = Stages()
    assert run(config, stages) == 5
    wave = ["frames", "encode", "decode"]
    assert stages.names() == ["frames", *wave, *wave, "encode", "decode"]
    told = [len(job_fields(c.job)["media"]) for c in stages.calls if c.name == "frames"]
    assert told == [3, 1, 1]


def test_outputs_are_written_seldom(config: CaptionConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bool] = []

    def write(job: Job, *, last: bool) -> OutputCounts:
        written.append(last)
        return write_outputs(job, last=last)

    monkeypatch.setattr(flows.running.pipeline_runner, "write_outputs", write)
    monkeypatch.setattr(flows.running.pipeline_runner, "WRITING_SHARE", 10**9)
    monkeypatch.setattr(flows.planning.sizes, "MAX_WAVE_BYTES", 1)
    stages = Stages()
    assert run(config, stages) == 5
    assert stages.names().count("decode") == 5
    assert written == [True]


@pytest.mark.parametrize(
    ("file", "again"),
    [
        ("chat_template.jinja", ["decode"]),
        ("preprocessor_config.json", ["frames", "encode", "decode"]),
    ],
)
def test_a_changed_model_makes_anew_what_it_decides(
    config: CaptionConfig, tmp_path: Path, file: str, again: list[str]
) -> None:
    run(config, Stages())
    (tmp_path / "model" / file).write_text(digest_of("another"))
    stages = Stages()
    run(config, stages)
    assert stages.names() == again


def test_a_wave_starts_each_stage_once_on_batches(config: CaptionConfig, tmp_path: Path) -> None:
    stages = Stages()
    assert run(config, stages) == 5
    assert stages.names() == ["frames", "encode", "decode"]
    assert list(FolderStore(tmp_path / "store").list("frames")) == []
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


@pytest.mark.parametrize("name", ["5.mp4", "0.mp4"])
def test_a_new_or_changed_file_is_encoded_without_the_frames_of_the_others(
    config: CaptionConfig, tmp_path: Path, name: str
) -> None:
    run(config, Stages())
    write_video(tmp_path / "clips" / name, ticks=range(9))
    more = Stages()
    assert run(config, more) == (6 if name == "5.mp4" else 5)
    assert [len(batch) for batch in more.batches("encode")] == [1]
    (told,) = job_fields(more.calls[0].job)["media"]
    assert told.path.endswith(name)


class Disturbed(Stages):
    """A launcher that calls a function before it starts one stage."""

    def __init__(self, stage: str, happens: Callable[[], object]) -> None:
        super().__init__()
        self._stage = stage
        self._happens = happens

    def start(self, call: StageCall) -> Answer:
        if call.name == self._stage:
            self._stage = ""
            self._happens()
        return super().start(call)


def ends(config: CaptionConfig) -> dict[str, float]:
    rows = read_lines(Path(config.out) / "captions.jsonl")
    return {row["media_path"]: row["end"] for row in rows}


def test_a_file_replaced_before_the_cut_is_left_over(config: CaptionConfig, tmp_path: Path) -> None:
    following = write_video(tmp_path / "next.mp4", ticks=range(90))
    first = tmp_path / "clips" / "0.mp4"
    kept, end = first.read_bytes(), 1 / 3
    stages = Disturbed("frames", lambda: os.replace(following, first))
    result = caption(config, Display(quiet=True), stages.launcher)
    assert result.exit_code == 1 and result.captions == 4
    (failure,) = read_lines(tmp_path / "out" / "failures.jsonl")
    assert (failure["media_path"], failure["error"]) == ("0.mp4", "changed")
    assert caption(config, Display(quiet=True), Stages().launcher).exit_code == 0
    assert ends(config)["0.mp4"] == 3.0 and ends(config)["1.mp4"] == pytest.approx(end, abs=0.01)
    first.write_bytes(kept)  # what it held is asked for again, and nothing of it is there
    assert caption(config, Display(quiet=True), Stages().launcher).exit_code == 0
    assert ends(config)["0.mp4"] == pytest.approx(end, abs=0.01)


def test_a_file_replaced_after_that_is_in_no_shard(config: CaptionConfig, tmp_path: Path) -> None:
    following = write_video(tmp_path / "next.mp4", ticks=range(90))
    first = tmp_path / "clips" / "0.mp4"
    stages = Disturbed("decode", lambda: os.replace(following, first))
    shards = replace(config, format=("webdataset",))
    result = caption(shards, Display(quiet=True), stages.launcher)
    assert result.captions == 5 and "files changed" in result.warnings[-1]
    (shard,) = (tmp_path / "out" / "webdataset").glob("*.tar")
    with tarfile.open(shard) as tar:
        names = tar.getnames()
    videos = {name.partition("-")[0] for name in names if name.endswith(".mp4")}
    assert videos == {"1", "2", "3", "4"}
    assert {name.partition("-")[0] for name in names if name.endswith(".txt")} == {*videos, "0"}


def test_a_chunk_that_is_refused_fails_alone_until_retried(config: CaptionConfig) -> None:
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
    (tmp_path / "out").mkdir()
    lock = try_hold(tmp_path / "out" / ".lock")
    assert lock is not None
    with lock, pytest.raises(UsageError, match="is already captioning into"):
        run(config, Stages())


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


def test_a_text_is_written_though_a_chunk_is_refused(config: CaptionConfig, tmp_path: Path) -> None:
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
