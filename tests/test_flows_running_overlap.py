"""Chunks are encoded while others are cut, and a run in which that fails makes the same records."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from artifacts.errors import Killed, OutOfMemory, PenstockError, StageDied
from artifacts.packs import Record, RecordSet
from artifacts.store import open_store
from flows.console.display import Display
from flows.machine.launch import StageCall
from flows.options.commands import CaptionConfig
from flows.running import overlap, pipeline_runner
from flows.running.run import caption
from stages.frames.video import Video
from stages.process.job import job_fields
from stages.process.live import read_requests
from stages.process.outcome import StageOutcome
from tests.support.media import write_numbered, write_video
from tests.support.pipeline import ROOT, SECONDS, Place, read_lines
from tests.support.slow_tower import KILL
from tests.support.slow_tower import SECONDS as CHUNK_SECONDS
from tests.support.stand_ins import Answer, Stages, config_in

CHUNKS = 6


class Fed(Stages):
    """Encodes each portion when it arrives. With an `error`, it encodes the first chunk of each,
    and ends before the third portion."""

    def __init__(self, error: PenstockError | None = None) -> None:
        super().__init__()
        self.error = error
        self.portions: list[list[str]] = []
        """Keys of the frames that came in each portion."""
        self.feeds = 0
        self.indexed: list[bool] = []
        """Whether the index of a video was there when a portion came."""

    def start(self, call: StageCall) -> Answer:
        if not getattr(call.job, "feed", ""):
            return super().start(call)
        self.feeds += 1
        outcome = StageOutcome(name=call.name)
        reader = Thread(target=self._encode, args=(job_fields(call.job), outcome), daemon=True)
        reader.start()

        def wait(outcome: StageOutcome) -> StageOutcome:
            reader.join(SECONDS)
            if self.error is not None:
                raise self.error
            return outcome

        return Answer(outcome, wait)

    def _encode(self, job: dict[str, Any], outcome: StageOutcome) -> None:
        store = open_store(job["store"])
        for number, portion in enumerate(read_requests(job["feed"]), 1):
            if portion is None or (self.error is not None and number == 3):
                return
            outcome.notes["portions"] = number
            frames = RecordSet(store, "frames", job["frames_namespace"])
            media = RecordSet(store, "media", job["frames_namespace"])
            keys = [(key, frames_key) for batch in portion for key, frames_key, *_ in batch]
            assert all(each in frames for _, each in keys)
            if self.error is not None:
                keys = keys[:1]  # under load, two portions may hold all chunks
            self.portions.append([each for _, each in keys])
            self.indexed.append(bool(media.keys()))
            features = RecordSet(store, "features", job["namespace"])
            meta = {"caption": "something", "tokens": 1}
            made = features.publish([Record(key=key, meta=meta) for key, _ in keys])
            outcome.items += len(made)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CaptionConfig:
    """A run over one video of six chunks, each of which takes a while to cut."""
    chunks = Video.chunks

    def slowly(*given: Any) -> Iterator[Any]:
        for chunk in chunks(*given):
            time.sleep(0.1)
            yield chunk

    monkeypatch.setattr(Video, "chunks", slowly)
    monkeypatch.setattr(overlap, "LOOK_SECONDS", 0.03)
    (tmp_path / "clips").mkdir()
    write_video(tmp_path / "clips" / "a.mp4", ticks=range(CHUNKS * 30))
    return config_in(tmp_path, tmp_path / "clips", batch_size=1, chunk=1.0)


def run(config: CaptionConfig, stages: Stages) -> dict[str, Any]:
    result = caption(config, Display(quiet=True), stages.launcher)
    assert (result.failures, result.exit_code) == ([], 0)
    record: dict[str, Any] = json.loads((Path(config.out) / "run.json").read_text())
    return record


def test_chunks_are_encoded_while_others_of_their_video_are_cut(config: CaptionConfig) -> None:
    stages = Fed()
    record = run(config, stages)
    assert stages.names() == ["frames", "decode"]
    assert len(stages.portions) >= 3 and stages.indexed[0] is False
    sent = [key for portion in stages.portions for key in portion]
    assert len(sent) == len(set(sent)) == CHUNKS
    encode = next(stage for stage in record["stages"] if stage["name"] == "encode")
    assert (encode["items"], encode["total"], encode["processes"]) == (CHUNKS, CHUNKS, 1)
    assert not list((Path(config.out) / "logs").glob("*.feed"))


@pytest.mark.parametrize(
    "error",
    [
        OutOfMemory("the encode stage ran out of memory"),
        Killed("the encode stage was ended by signal 9"),
        StageDied("the encode stage crashed", return_code=-11),
    ],
)
def test_what_was_not_encoded_in_time_is_encoded_afterwards(
    config: CaptionConfig, error: PenstockError
) -> None:
    stages = Fed(error)
    record = run(config, stages)
    assert stages.names() == ["frames", "encode", "decode"]
    early = sum(map(len, stages.portions))
    assert 0 < early < CHUNKS
    assert len(stages.batches("encode")) == CHUNKS - early
    assert not record["rungs"]


def test_images_and_chunks_of_an_earlier_run_are_sent_once(
    config: CaptionConfig, tmp_path: Path
) -> None:
    first = Stages()
    first.stop_after = {"encode": 2}
    with pytest.raises(PenstockError):
        run(config, first)
    write_numbered(tmp_path / "clips", 3)
    stages = Fed()
    run(config, stages)
    sent = [key for portion in stages.portions for key in portion]
    assert len(sent) == len(set(sent)) == CHUNKS - 2 + 3
    assert "encode" not in stages.names()


def test_the_next_wave_is_cut_while_this_one_is_decoded_and_then_encoded_as_it_is_cut(
    config: CaptionConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_runner, "wave_limit", lambda job: 1)
    write_video(tmp_path / "clips" / "b.mp4", ticks=range(CHUNKS * 30), gop=20)
    stages = Fed()
    run(config, stages)
    assert stages.names() == ["frames", "frames", "decode", "decode"]
    assert stages.feeds == 2 and len(stages.portions) >= 4
    sent = [key for portion in stages.portions for key in portion]
    assert len(sent) == len(set(sent)) == 2 * CHUNKS


def test_where_batches_matter_nothing_is_encoded_early(config: CaptionConfig) -> None:
    stages = Fed()
    run(replace(config, encode_way="batches"), stages)
    assert stages.names() == ["frames", "encode", "decode"] and not stages.portions


def test_without_memory_for_both_stages_nothing_is_encoded_early(
    config: CaptionConfig, tmp_path: Path
) -> None:
    plan = run(replace(config, store=str(tmp_path / "other")), Stages())["plan"]
    peaks = [stage["peak_bytes"] for stage in plan["memory"]["stages"]]
    stages = Fed()
    record = run(replace(config, memory=max(peaks), out=str(tmp_path / "again")), stages)
    assert stages.names() == ["frames", "encode", "decode"] and not stages.portions
    assert [note for note in record["plan"]["notes"] if "together do not fit" in note]


def real(place: Place, *more: str, kill: str = "") -> "subprocess.CompletedProcess[str]":
    """Run a command whose stages are slow, in processes of their own."""
    change = "from flows.machine.launch import ENTRIES; from tests.support.slow_tower import SLOW"
    kill = f"os.environ[{KILL!r}] = {kill!r}.replace('PARENT', str(os.getpid()))" if kill else ""
    code = f"{change}; ENTRIES.update(SLOW)\nimport os, sys\n{kill}\n"
    code += "from flows.cli.main import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *place.command("--chunk", "1", *more)[3:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        env={**os.environ, CHUNK_SECONDS: "0.2"},
    )


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["PARENT", "frames", "encode"])
def test_a_run_that_is_killed_while_both_work_ends_with_the_same_bytes(
    tmp_path: Path, killed: str
) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    for at in range(2):
        write_video(clips / f"{at}.mp4", ticks=range((5 + at) * 30), gop=15 + at)
    quiet = Place(clips=clips, out=tmp_path / "quiet", store=tmp_path / "quiet-store")
    assert real(quiet, "--keep-frames").returncode == 0
    spans = {name: stage["spans"][0] for name, stage in quiet.stages().items()}
    assert spans["encode"][0] < spans["frames"][1]  # both worked at the same time
    stages = [killed] if killed != "PARENT" else ["frames", "encode"]
    moments = [(stage, chunk) for stage in stages for chunk in range(1, 6 // len(stages))]
    for stage, chunk in moments[:5]:
        mark = tmp_path / f"{stage}-{chunk}"
        place = replace(quiet, out=tmp_path / f"out-{mark.name}", store=tmp_path / f"s-{mark.name}")
        pid = "PARENT" if killed == "PARENT" else "0"
        done = real(place, "--keep-frames", kill=f"{stage} {chunk} {pid} {mark}")
        assert mark.exists()
        if killed == "PARENT":
            assert done.returncode == -signal.SIGKILL
            done = real(place, "--keep-frames")
        assert done.returncode == 0, done.stderr
        for kind in ("frames", "features", "captions"):
            assert place.stored(kind) == quiet.stored(kind)
        assert read_lines(place.out / "captions.jsonl") == read_lines(quiet.out / "captions.jsonl")
