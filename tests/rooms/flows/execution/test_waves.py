"""What runs after what, seen with stages that answer at once: waves, batches, frames given back,
and chunks that are encoded while others are cut."""

import json
import os
import shutil
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from PIL import Image

import flows.core.ledger.tasks
import flows.core.plan.store_limit
import flows.execution.pipeline_runner
from artifacts.digests import digest_of
from artifacts.disk.locks import try_hold
from artifacts.errors import (
    EnvironmentFault,
    Interrupted,
    Killed,
    OutOfMemory,
    PenstockError,
    StageDied,
    UsageError,
)
from artifacts.records.packs import Record, RecordSet, read_header
from artifacts.records.store import FolderStore, open_store
from flows.core.console.display import Display
from flows.core.job.prepare import Job, prepare
from flows.core.machine.launch import StageCall
from flows.core.options.commands import CaptionConfig
from flows.execution import chunk_feed, frames_runner, run_pipe
from flows.execution.run import caption
from flows.execution.run_observer import hold_lease
from flows.execution.run_pipe import RunPipe
from flows.outputs.write import OutputCounts, write_outputs
from stages.decode.generation import DecodeItem
from stages.frames.video import Video
from stages.models.cache_memory import LayerMemory, RowMemory
from stages.models.encoding import EncodeItem
from stages.process.events import StageOutcome
from stages.process.job import job_fields
from stages.process.requests import BEGUN, Make, Message, read_messages
from tests.support.media import write_numbered, write_video
from tests.support.pipeline import SECONDS, read_lines
from tests.support.stand_ins import HALF, PROFILE, Answer, Stages, config_in


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
    monkeypatch.setattr(flows.core.plan.store_limit, "MAX_WAVE_BYTES", 30_000)
    sent: list[int] = []

    class Pipe(RunPipe):
        def send(self, message: Message) -> None:
            sent.extend(len(batch) for batch in getattr(message, "batches", ()))
            super().send(message)

    monkeypatch.setattr(frames_runner, "RunPipe", Pipe)
    stages = Stages()
    assert run(config, stages) == 5
    wave = ["encode", "decode"]
    assert stages.names() == ["frames", *wave, *wave, *wave]
    assert len(job_fields(stages.calls[1].job)["media"]) == 3
    assert sent == [1, 1]


def test_each_wave_has_a_process_where_there_are_no_pipes(
    config: CaptionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows.core.plan.store_limit, "MAX_WAVE_BYTES", 30_000)
    monkeypatch.setattr(os, "mkfifo", refuse)
    stages = Stages()
    assert run(config, stages) == 5
    assert stages.names() == ["frames", "encode", "decode"] * 3


def refuse(*_: object) -> None:
    raise PermissionError("no pipes here")


def test_outputs_are_written_seldom(config: CaptionConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bool] = []

    def write(job: Job, *, last: bool) -> OutputCounts:
        written.append(last)
        return write_outputs(job, last=last)

    monkeypatch.setattr(flows.execution.pipeline_runner, "write_outputs", write)
    monkeypatch.setattr(flows.execution.pipeline_runner, "WRITING_SHARE", 10**9)
    monkeypatch.setattr(flows.core.plan.store_limit, "MAX_WAVE_BYTES", 1)
    stages = Stages()
    assert run(config, stages) == 5
    assert stages.names().count("decode") == 5
    assert written == [True]


@pytest.mark.slow
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
    (tmp_path / "model" / file).write_text(json.dumps({"another": digest_of("another")}))
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


def frames_left(config: CaptionConfig) -> tuple[int, int]:
    """How many files of frames the store holds, and how many chunks are in them."""
    store, counts = FolderStore(Path(config.store_url)), list[int]()
    for pack in store.list("frames"):
        with suppress(FileNotFoundError):  # another run has just deleted it
            counts.append(len(list(read_header(store, pack))))
    return len(counts), sum(counts)


def beside(config: CaptionConfig, *names: str, **options: Any) -> CaptionConfig:
    """Another run over these files of the same folder, with the same store."""
    sources = tuple(str(Path(config.sources[0]) / name) for name in names)
    return replace(config, sources=sources, **{"out": f"{config.out}-{'-'.join(names)}", **options})


def run_around(outer: CaptionConfig, inner: CaptionConfig, stages: Stages) -> list[tuple[int, int]]:
    """Run `outer`, and, before it has done anything, `inner`. Return the frames that each left."""
    left = []

    def run_inner(*_: object) -> None:
        run(inner, Stages())
        left.append(frames_left(inner))

    caption(outer, Display(quiet=True), stages.launcher, run_inner)
    return [*left, frames_left(outer)]


def test_frames_go_though_another_run_uses_the_store(config: CaptionConfig) -> None:
    first, second = beside(config, "0.mp4", "1.mp4"), beside(config, "2.mp4", "3.mp4")
    assert run_around(second, first, Stages()) == [(0, 0), (0, 0)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mp4", "png"])
def test_frames_others_need_are_kept(config: CaptionConfig, tmp_path: Path, kind: str) -> None:
    write_numbered(tmp_path / "clips", 5)  # pictures of a run lie in one pack
    first = beside(config, *(f"{at}.{kind}" for at in range(3)))
    shutil.copytree(config.model, tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").write_text("others")
    second = beside(config, *(f"{at}.{kind}" for at in (2, 3)), model=str(tmp_path / "other"))
    stages = Stages()
    assert run_around(second, first, stages) == [(1, 1), (0, 0)]
    cut = [m.path for c in stages.calls if c.name == "frames" for m in job_fields(c.job)["media"]]
    assert [Path(path).name for path in cut] == [f"3.{kind}"]


def test_frames_that_two_runs_shared_go_with_the_later_one(config: CaptionConfig) -> None:
    """Each of the two runs still needs the clip when the other has encoded it."""
    left = []
    with ExitStack() as other:
        other.enter_context(hold_lease(prepare(beside(config, "0.mp4"), Stages())))
        other.callback(lambda: left.append(frames_left(config)))
        run(config, Disturbed("decode", other.close))
    assert [*left, frames_left(config)] == [(1, 1), (0, 0)]


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


def test_outputs_are_not_written_into_a_folder_that_was_removed(config: CaptionConfig) -> None:
    out = Path(config.out)
    with pytest.raises(EnvironmentFault, match="removed or moved during the run"):
        run(config, Disturbed("decode", lambda: shutil.rmtree(out)))
    assert not (out / "captions.jsonl").exists()
    assert run(config, Stages()) == 5 and (out / "run.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("second", [("0.mp4", "1.mp4"), ("2.mp4", "3.mp4")])
def test_runs_that_end_together_leave_none(config: CaptionConfig, second: tuple[str, str]) -> None:
    other = beside(config, *second, out=f"{config.out}-second")
    for _ in range(20):
        decoding = threading.Barrier(2, timeout=60)
        with ThreadPoolExecutor(max_workers=2) as pool:
            done = [
                pool.submit(run, each, Disturbed("decode", decoding.wait))
                for each in (beside(config, "0.mp4", "1.mp4"), other)
            ]
            assert [each.result() for each in done] == [2, 2]
        assert frames_left(config) == (0, 0)
        shutil.rmtree(config.store)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_partitions_keep_frames_of_two_waves_each(config: CaptionConfig, tmp_path: Path) -> None:
    """Four workers run 200 partitions of 10,000 pictures, one partition at a time each."""
    size, folder = 50, tmp_path / "pictures"
    folder.mkdir()
    for at in range(200 * size):
        Image.new("RGB", (8, 8), (at % 256, at // 256 % 256, 7)).save(folder / f"{at:05d}.png")
    largest = 0

    def run_one(number: int) -> int:
        nonlocal largest
        names = [str(folder / f"{number * size + at:05d}.png") for at in range(size)]
        out = tmp_path / "portions" / str(number)
        made = run(replace(config, sources=tuple(names), out=str(out)), Stages())
        largest = max(largest, frames_left(config)[1])
        return made

    with ThreadPoolExecutor(max_workers=4) as pool:
        assert set(pool.map(run_one, range(200))) == {size}
    assert largest <= 4 * 2 * size and frames_left(config) == (0, 0)


@pytest.mark.slow
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
    message = stopped.batches(stage)
    assert resumed.batches(stage) == message[1:]
    run(replace(config, store=f"{config.store}-2"), whole)
    assert whole.batches(stage) == message
    if stage == "decode":
        assert resumed.names() == ["decode"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["5.mp4", "0.mp4"])
def test_a_new_or_changed_file_is_encoded_without_the_frames_of_the_others(
    config: CaptionConfig, tmp_path: Path, name: str
) -> None:
    run(config, Stages())
    write_video(tmp_path / "clips" / name, ticks=range(9))
    more = Stages()
    assert run(config, more) == (6 if name == "5.mp4" else 5)
    assert [len(batch) for batch in more.batches("encode")] == [1]
    (message,) = job_fields(more.calls[0].job)["media"]
    assert message.path.endswith(name)


def ends(config: CaptionConfig) -> dict[str, float]:
    rows = read_lines(Path(config.out) / "captions.jsonl")
    return {row["media_path"]: row["end"] for row in rows}


@pytest.mark.slow
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
    result = caption(replace(config, format=("webdataset",)), Display(quiet=True), stages.launcher)
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
    os.rename(tmp_path / "clips" / "0.mp4", os.fsencode(tmp_path / "clips") + b"/caf\xe9.mp4")
    assert run(config, Stages()) == 5
    assert "caf\ufffd.mp4" in (tmp_path / "out" / "captions.jsonl").read_text()


CHUNKS = 6


class Fed(Stages):
    """Encodes each message when it arrives. With an `error`, it encodes the first chunk of each,
    and ends before the third."""

    def __init__(self, error: PenstockError | None = None) -> None:
        super().__init__()
        self.error = error
        self.messages: list[list[str]] = []
        """Keys of the frames that came in each message."""
        self.feeds = 0
        self.indexed: list[bool] = []
        """Whether the index of a video was there when a message came."""

    def start(self, call: StageCall) -> Answer:
        if call.name == "frames" or not getattr(call.job, "requests", ""):
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
        for message in read_messages(job["requests"]):
            assert isinstance(message, Make)
            if self.error is not None and message.number == 3:
                return
            outcome.notes[BEGUN] = message.number
            frames = RecordSet(store, "frames", job["frames_namespace"])
            media = RecordSet(store, "media", job["frames_namespace"])
            keys = [(key, frames_key) for batch in message.batches for key, frames_key, *_ in batch]
            assert all(each in frames for _, each in keys)
            if self.error is not None:
                keys = keys[:1]  # under load, two messages may hold all chunks
            self.messages.append([each for _, each in keys])
            self.indexed.append(bool(media.keys()))
            features = RecordSet(store, "features", job["namespace"])
            meta = {"caption": "something", "tokens": 1, "ended": "stop"}
            made = features.publish([Record(key=key, meta=meta) for key, _ in keys])
            outcome.items += len(made)


@pytest.fixture
def slowly_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CaptionConfig:
    """A run over one video of six chunks, each of which takes a while to cut."""
    chunks = Video.chunks

    def slowly(*given: Any) -> Iterator[Any]:
        for chunk in chunks(*given):
            time.sleep(0.1)
            yield chunk

    monkeypatch.setattr(Video, "chunks", slowly)
    monkeypatch.setattr(chunk_feed, "LOOK_SECONDS", 0.03)
    (tmp_path / "clips").mkdir()
    write_video(tmp_path / "clips" / "a.mp4", ticks=range(CHUNKS * 30))
    return config_in(tmp_path, tmp_path / "clips", batch_size=1, chunk=1.0)


def record_of(slowly_cut: CaptionConfig, stages: Stages) -> dict[str, Any]:
    result = caption(slowly_cut, Display(quiet=True), stages.launcher)
    assert (result.failures, result.exit_code) == ([], 0)
    record: dict[str, Any] = json.loads((Path(slowly_cut.out) / "run.json").read_text())
    return record


def test_chunks_are_encoded_while_others_of_their_video_are_cut(slowly_cut: CaptionConfig) -> None:
    stages = Fed()
    record = record_of(slowly_cut, stages)
    assert stages.names() == ["frames", "decode"]
    assert len(stages.messages) >= 3 and stages.indexed[0] is False
    sent = [key for message in stages.messages for key in message]
    assert len(sent) == len(set(sent)) == CHUNKS
    encode = next(stage for stage in record["stages"] if stage["name"] == "encode")
    assert (encode["items"], encode["total"], encode["processes"]) == (CHUNKS, CHUNKS, 1)
    assert not list((Path(slowly_cut.out) / "logs").glob("*.feed"))


@pytest.mark.in_turn
@pytest.mark.parametrize(
    "error",
    [
        OutOfMemory("the encode stage ran out of memory"),
        Killed("the encode stage was ended by signal 9"),
        StageDied("the encode stage crashed", return_code=-11),
    ],
)
def test_what_was_missed_is_encoded_later(slowly_cut: CaptionConfig, error: PenstockError) -> None:
    stages = Fed(error)
    record = record_of(slowly_cut, stages)
    assert stages.names() == ["frames", "encode", "decode"]
    early = sum(map(len, stages.messages))
    assert 0 < early < CHUNKS
    assert len(stages.batches("encode")) == CHUNKS - early
    assert not record["rungs"]


@pytest.mark.slow
def test_media_of_an_earlier_run_are_sent_once(slowly_cut: CaptionConfig, tmp_path: Path) -> None:
    first = Stages()
    first.stop_after = {"encode": 2}
    with pytest.raises(PenstockError):
        record_of(slowly_cut, first)
    write_numbered(tmp_path / "clips", 3)
    stages = Fed()
    record_of(slowly_cut, stages)
    sent = [key for message in stages.messages for key in message]
    assert len(sent) == len(set(sent)) == CHUNKS - 2 + 3
    assert "encode" not in stages.names()


class Staying(Stages):
    """Processes that make the items that a run sends, until they read `End`. The first process of
    the stage `ends` exits after two items. Those of the stage `forgets` do not answer the first."""

    def __init__(self, ends: str = "", forgets: str = "") -> None:
        super().__init__()
        layer = LayerMemory(kind="DynamicLayer", token_bytes=4)
        memory = RowMemory(kept=(layer,), words=100)
        self.profile = replace(
            PROFILE, parts={**PROFILE.parts, "language": replace(HALF, row_memory=memory)}
        )
        self.ends, self.forgets = ends, forgets
        self.sent: list[tuple[str, list[str]]] = []
        """Stage and keys of each process that was sent its work."""

    def start(self, call: StageCall) -> Answer:
        if call.name == "frames" or not getattr(call.job, "requests", ""):
            return super().start(call)
        keys: list[str] = []
        self.sent.append((call.name, keys))
        outcome, left = StageOutcome(name=call.name), 10**9
        if call.name == self.ends:
            self.ends, left = "", 2
        work = Thread(target=self._go_on, args=(call, outcome, keys, left), daemon=True)
        work.start()
        return Running(outcome, work)

    def _go_on(self, call: StageCall, outcome: StageOutcome, keys: list[str], left: int) -> None:
        for message in read_messages(job_fields(call.job)["requests"]):
            assert isinstance(message, Make)
            outcome.notes[BEGUN] = message.number
            batches = [[*batch] for batch in message.batches]
            kind = EncodeItem if call.name == "encode" else DecodeItem
            items = [[kind(*item) for item in batch] for batch in batches]
            self._make(replace(call, job=replace(call.job, batches=items)), outcome)
            keys += [item.key for batch in items for item in batch]
            if len(keys) >= left:
                return
            outcome.answered.update(keys[call.name == self.forgets :])


class Running(Answer):
    """A process that works on a thread."""

    def __init__(self, outcome: StageOutcome, work: Thread) -> None:
        super().__init__(outcome, lambda made: made)
        self._thread = work

    def wait(self) -> StageOutcome:
        self._thread.join(SECONDS)
        return self.outcome

    def wait_for_exit(self, seconds: float) -> bool:
        self._thread.join(seconds)
        return not self._thread.is_alive()


@pytest.mark.parametrize("ends", ["", "encode", "decode"])
@pytest.mark.parametrize("why", ["disk", "max store"])
def test_both_processes_stay_for_the_next_wave(
    config: CaptionConfig, monkeypatch: pytest.MonkeyPatch, why: str, ends: str
) -> None:
    monkeypatch.setattr(chunk_feed, "LOOK_SECONDS", 0.03)
    if why == "max store":
        config = replace(config, max_store=60_000)
    else:
        monkeypatch.setattr(flows.core.plan.store_limit, "MAX_WAVE_BYTES", 1)
    stages = Staying(ends)
    assert run(replace(config, engine="inflight"), stages) == 5
    alone = [name for name in stages.names() if name != "frames"]
    made = [(stage, len(keys)) for stage, keys in stages.sent]
    assert stages.names() == ["frames"] and alone == []
    if ends:  # with it the other, and both are started for the next wave
        assert [stage for stage, _ in made] == ["encode", "decode"] * 2
    else:
        assert made == [("encode", 5), ("decode", 5)]
    for stage in ("encode", "decode"):
        assert sum(keys for name, keys in made if name == stage) == 5


@pytest.mark.parametrize("stage", ["encode", "decode"])
def test_a_process_that_forgets_an_item_holds_up_no_wave(
    config: CaptionConfig, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    monkeypatch.setattr(run_pipe, "PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(flows.core.plan.store_limit, "MAX_WAVE_BYTES", 1)
    stages = Staying(forgets=stage)
    assert run(replace(config, engine="inflight"), stages) == 5
    assert len([name for name, _ in stages.sent if name == stage]) > 1


@pytest.mark.slow
def test_the_next_wave_is_cut_while_this_one_is_decoded_and_then_encoded_as_it_is_cut(
    slowly_cut: CaptionConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows.core.plan.store_limit, "wave_bytes", lambda job, limit: 1)
    write_video(tmp_path / "clips" / "b.mp4", ticks=range(CHUNKS * 30), gop=20)
    stages = Fed()
    record_of(slowly_cut, stages)
    assert stages.names() == ["frames", "decode", "decode"]
    assert stages.feeds == 2 and len(stages.messages) >= 4
    sent = [key for message in stages.messages for key in message]
    assert len(sent) == len(set(sent)) == 2 * CHUNKS


@pytest.mark.slow
def test_with_batches_nothing_is_encoded_early(slowly_cut: CaptionConfig, in_batches: None) -> None:
    stages = Fed()
    record_of(slowly_cut, stages)
    assert stages.names() == ["frames", "encode", "decode"] and not stages.messages


@pytest.mark.slow
def test_without_memory_for_both_none_is_early(slowly_cut: CaptionConfig, tmp_path: Path) -> None:
    plan = record_of(replace(slowly_cut, store=str(tmp_path / "other")), Stages())["plan"]
    peaks = [stage["peak_bytes"] for stage in plan["memory"]["stages"]]
    stages = Fed()
    record = record_of(replace(slowly_cut, memory=max(peaks), out=str(tmp_path / "again")), stages)
    assert stages.names() == ["frames", "encode", "decode"] and not stages.messages
    assert [note for note in record["plan"]["notes"] if "together do not fit" in note]
