"""Stages that are killed, crash, hang, or meet damaged packs or a full disk; the same command, or
workers of portions in any order, end with the bytes of an undisturbed run."""

import functools
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

import flows.execution.pipeline_runner
from artifacts.errors import EnvironmentFault, Interrupted, Killed, PenstockError
from artifacts.records.packs import DamagedRecord
from flows.core.console.display import Display
from flows.core.job.partitions import partitions_of
from flows.core.machine.launch import REMAKES, StageCall
from flows.core.options.commands import CaptionConfig
from flows.core.plan.plan import plan_of
from flows.core.plan.view import figures
from flows.execution.run import caption
from flows.interfaces.cli.main import main
from flows.outputs.record.run_read import load_record
from flows.outputs.run_status import run_status
from flows.outputs.run_wording import description_lines
from penstock_demo.clips import write_clips
from scripts.run.stage_processes import descendants
from stages.process.events import StageOutcome
from stages.process.job import job_fields
from stages.process.stage_process import Listener, ProcessSettings, StageProcess
from tests.support import crashing, slow_writes
from tests.support.commands import completed
from tests.support.crashing import CRASH, HANG
from tests.support.disks import mount, small_disk
from tests.support.forms import SHORT, text_of
from tests.support.media import write_video, write_videos
from tests.support.pipeline import PENSTOCK, ROOT, SECONDS, Place, kill_at, read_lines, wait_gone
from tests.support.slow_desk import slow
from tests.support.slow_tower import KILL
from tests.support.slow_tower import SECONDS as CHUNK_SECONDS
from tests.support.stand_ins import Answer, Stages, config_in


def killed(stage: str, items: int) -> PenstockError:
    return Killed(f"{stage} was killed", items=items)


class KilledStages(Stages):
    """Each (stage, items) in turn ends that stage after it made so many items, with an error."""

    def __init__(
        self, *kills: tuple[str, int], error: Callable[[str, int], PenstockError] = killed
    ) -> None:
        super().__init__()
        self.kills = list(kills)
        self._error = error

    def start(self, call: StageCall) -> Answer:
        fed = job_fields(call.job).get("requests")
        if fed or not self.kills or self.kills[0][0] != call.name:
            return super().start(call)
        _, items = self.kills.pop(0)
        self.calls.append(call)

        def work(outcome: StageOutcome) -> StageOutcome:
            if items:
                self.stop_after = {call.name: items}
                with pytest.raises(Interrupted):
                    self._answer(call, outcome)
                self.stop_after = {}
            raise self._error(call.name, outcome.items)

        return Answer(StageOutcome(name=call.name), work)


def damaged(*packs: str) -> KilledStages:
    """The encode stage finds these packs damaged, one after the other, and then none."""
    left = iter(packs)
    kills = [("encode", 0)] * len(packs)
    return KilledStages(*kills, error=lambda *_: DamagedRecord(f"{next(left)} was damaged"))


class RealFrames(Stages):
    """Frames are cut in a process of their own; the other stages answer at once."""

    def launcher(self, listen: Listener) -> "RealFrames":
        self._listen = listen
        return self

    def start(self, call: StageCall) -> Any:
        if call.name != "frames":
            return super().start(call)
        self.calls.append(call)
        given: dict[str, Any] = {"name": call.name, "job": call.job, "log": call.log}
        entry = "tests.support.crashing:frames"
        return StageProcess(ProcessSettings(device="cpu", **given), entry, self._listen)


@pytest.fixture
def config(tmp_path: Path) -> CaptionConfig:
    return config_in(tmp_path, write_videos(tmp_path / "clips", 4), batch_size=1)


def run(config: CaptionConfig, stages: Stages) -> int:
    return caption(config, Display(quiet=True), stages.launcher).captions


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kills", "names"),
    [
        ([("frames", 0)], ["frames", "frames", "encode", "decode"]),
        ([("encode", 1)], ["frames", "encode", "encode", "decode"]),
        ([("decode", 3)], ["frames", "encode", "decode", "decode"]),
        ([("encode", 0), ("encode", 0)], ["frames", "encode", "encode", "encode", "decode"]),
        ([("decode", 1)] * 3, ["frames", "encode", *["decode"] * 4]),
    ],
)
def test_a_killed_stage_goes_on_where_it_was(
    config: CaptionConfig, kills: Sequence[tuple[str, int]], names: list[str]
) -> None:
    stages = KilledStages(*kills)
    assert run(config, stages) == 4
    assert stages.names() == names
    assert len(read_lines(Path(config.out) / "captions.jsonl")) == 4
    for stage in ("encode", "decode"):
        messages = [len(job_fields(c.job)["batches"]) for c in stages.calls if c.name == stage]
        made = [items for name, items in kills if name == stage]
        assert messages == [4 - sum(made[:before]) for before in range(len(messages))]


def test_a_stage_that_is_killed_before_it_made_anything_ends_the_run(config: CaptionConfig) -> None:
    stages = KilledStages(("encode", 0), ("encode", 0), ("encode", 0))
    with pytest.raises(Killed):
        run(config, stages)
    assert stages.names() == ["frames", "encode", "encode", "encode"]
    assert run(config, Stages()) == 4


def test_describing_a_model_is_begun_again_twice_when_it_is_killed(config: CaptionConfig) -> None:
    stages = KilledStages(*[("describe", 0)] * 3)
    with pytest.raises(Killed):
        run(config, stages)
    assert [call.name for call in stages.calls] == ["describe"] * 3
    stages = KilledStages(("describe", 0), ("describe", 0))
    assert run(config, stages) == 4
    assert [call.name for call in stages.calls[:4]] == ["describe"] * 3 + ["frames"]


def test_a_stage_that_was_asked_to_stop_is_not_started_again(config: CaptionConfig) -> None:
    stages = KilledStages(("encode", 1), error=lambda stage, _: Interrupted(f"{stage} was stopped"))
    log = io.StringIO()
    with pytest.raises(Interrupted):
        caption(config, Display(to=log), stages.launcher)
    assert stages.names() == ["frames", "encode"]
    assert re.search(r"^encoding: 1 of 4 chunks in [\d.]+ s$", log.getvalue(), re.MULTILINE)
    stage = next(e for e in run_status(Path(config.out))["stages"] if e["name"] == "encode")
    assert (stage["done"], stage["pending"]) == (1, 3)


class Looked(Answer):
    """A stage during which the files of the run are read once it has made all of it."""

    def __init__(self, answer: Answer, out: Path) -> None:
        super().__init__(answer.outcome, answer._work)
        self._out, self.seen = out, list[int]()

    def wait_for_exit(self, seconds: float) -> bool:
        if not self.outcome.items:
            self.wait()
            return False
        lines = read_lines(self._out / "captions.jsonl")
        self.seen += [len(lines), json.loads((self._out / "run.json").read_text())["captions"]]
        return True


def test_the_record_counts_the_captions_that_can_be_read_during_the_run(
    config: CaptionConfig,
) -> None:
    looked: list[Looked] = []

    class LookedAt(Stages):
        def start(self, call: StageCall) -> Answer:
            answer = super().start(call)
            if call.name != "decode":
                return answer
            looked.append(Looked(answer, Path(config.out)))
            return looked[0]

    assert run(config, LookedAt()) == 4
    assert looked[0].seen == [4, 4]


def test_an_error_nobody_thought_of_leaves_no_record_of_a_running_run(
    config: CaptionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*_: object, **__: object) -> None:
        raise RuntimeError("something nobody thought of")

    with monkeypatch.context() as patch:
        patch.setattr(flows.execution.pipeline_runner, "write_outputs", wrong)
        with pytest.raises(RuntimeError):
            run(config, Stages())
    record = json.loads((Path(config.out) / "run.json").read_text())
    assert (record["state"], record["error"]) == ("failed", "something nobody thought of")
    assert run(config, Stages()) == 4


def test_many_damaged_packs_end_no_run(config: CaptionConfig) -> None:
    stages = damaged(*(f"{number}.pack" for number in range(20)))
    assert run(config, stages) == 4
    assert stages.names().count("encode") == 21


def test_a_pack_that_is_damaged_again_and_again_does(config: CaptionConfig) -> None:
    stages = damaged(*["a.pack", "b.pack"] * REMAKES)
    with pytest.raises(DamagedRecord, match=r"a\.pack"):
        run(config, stages)
    assert stages.names().count("encode") == 2 * REMAKES - 1


def test_a_file_that_crashes_or_hangs_the_decoder_is_named_alone(config: CaptionConfig) -> None:
    clips, out = Path(config.sources[0]), Path(config.out)
    for name, content in (("2-bad.mp4", CRASH), ("9-bad.mp4", HANG)):
        (clips / name).write_bytes(content + name.encode())
    stages = RealFrames()
    assert caption(config, Display(quiet=True), stages.launcher).exit_code == 1
    rows = read_lines(out / "captions.jsonl")
    assert [row["media_path"] for row in rows] == [f"{number}.mp4" for number in range(4)]
    failures = read_lines(out / "failures.jsonl")
    crashed = [(name, "crash") for name in ("2-bad.mp4", "9-bad.mp4")]
    assert [(f["media_path"], f["error"]) for f in failures] == crashed
    assert all(failure["hint"] for failure in failures)
    tried = len(stages.calls)
    again = caption(config, Display(quiet=True), stages.launcher)
    assert [f.error for f in again.failures] == ["crash"] * 2
    assert "frames" not in [call.name for call in stages.calls[tried:]]


def test_a_folder_that_is_removed_during_a_run_is_made_anew_by_the_same_command(
    config: CaptionConfig,
) -> None:
    out = Path(config.out)

    def gone(*_: object) -> PenstockError:
        shutil.rmtree(out)
        (out / "logs").mkdir(parents=True)  # as a further process does
        return EnvironmentFault(f"{out}/logs is missing", hint="Run it again")

    with pytest.raises(EnvironmentFault, match="is missing"):
        run(config, KilledStages(("decode", 2), error=gone))
    assert os.listdir(out) == ["logs"]
    assert run(config, Stages()) == 4


def test_a_file_that_has_its_process_killed_is_named_and_the_rest_is_made(
    config: CaptionConfig, tmp_path: Path
) -> None:
    (tmp_path / "clips" / "2-bad.mp4").write_bytes(crashing.KILL)
    for _ in range(2):  # each run tries it
        stages, out = RealFrames(), Path(config.out)
        assert caption(config, Display(quiet=True), stages.launcher).exit_code == 1
        rows = read_lines(out / "captions.jsonl")
        assert [row["media_path"] for row in rows] == [f"{number}.mp4" for number in range(4)]
        (failure,) = read_lines(out / "failures.jsonl")
        assert (failure["media_path"], failure["error"]) == ("2-bad.mp4", "killed")
        assert "frames" in stages.names()


@pytest.mark.slow
def test_a_full_disk_is_exit_5_and_later_goes_on(tmp_path: Path) -> None:
    video = write_video(tmp_path / "long.mp4", ticks=range(50), time_base=Fraction(1, 10))
    with small_disk(tmp_path / "disk", "100k") as disk:
        config = replace(config_in(tmp_path, video, chunk=2.0), store=str(disk))
        with pytest.raises(EnvironmentFault, match="is full") as full:
            run(config, RealFrames())
        assert full.value.exit_code == 5
        subprocess.run(mount("remount,size=50m", disk), check=True)
        assert run(config, RealFrames()) == 3


def test_after_a_full_disk_waves_are_cut_by_the_room_of_now(tmp_path: Path) -> None:
    clips = write_videos(tmp_path / "clips", 12)
    with small_disk(tmp_path / "disk", "150k") as disk:
        config = replace(config_in(tmp_path, clips), store=str(disk))
        with pytest.raises(EnvironmentFault, match="is full"):
            run(config, stages := Stages())
        assert stages.names().count("encode") > 1

        def told() -> list[str]:
            lines = description_lines(load_record(Path(config.out)))
            return [line for line in lines if line.startswith("in about")]

        (line,) = told()
        assert re.fullmatch(rf"in about \d+ waves of \d files?: \S+ kB are free in {disk}", line)
        subprocess.run(mount("remount,size=50m", disk), check=True)
        assert figures(plan_of(config, Stages()))["waves"] == 1
        assert run(config, stages := Stages()) == 12
        assert stages.names().count("encode") == 1 and not told()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_half_written_pack_of_a_stopped_run_is_gone_and_costs_no_captions(
    tmp_path: Path, number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    write_clips(tmp_path / "clips", 2, seed=3)
    place = Place(clips=tmp_path / "clips", out=tmp_path / "out", store=tmp_path / "store")
    assert place.run("--max-new-tokens", "4").returncode == 0
    captions, files = place.stored("captions"), place.store / "tmp"
    write_clips(tmp_path / "more", 1, seed=4)
    other = replace(place, clips=tmp_path / "more", out=tmp_path / "other")
    command = [sys.executable, "-m", slow_writes.MODULE, *other.command()[len(PENSTOCK) :]]
    running = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + SECONDS
    while not sum(half.stat().st_size for half in files.glob("*")) > 100_000:
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    children = descendants(running.pid)
    os.killpg(running.pid, number)
    assert running.wait(SECONDS) == (4 if number == signal.SIGINT else -9)
    wait_gone(children)
    left = sum(half.stat().st_size for half in files.iterdir())
    assert bool(left) == (number == signal.SIGKILL)
    assert main(["cache", "gc", "--max", "1MB", "--store", str(place.store)]) == 0
    assert not [*files.iterdir()] and place.stored("captions") == captions
    assert ("deleted" in capsys.readouterr().out) and place.stored("features")


CHANCE = ("--temperature", "0.9", "--seed", "5", "--retry-loops")
PROMPTS = ("--prompts", "long=Describe this video in detail.", "--prompts", "short=What is it?")
PLAIN = ("--batch-size", "2")
FORM = (*PLAIN, "--temperature", "1", "--format", "parquet")
ALL = (*PROMPTS, *CHANCE, "--summary", "--chunk", "3", "--max-new-tokens", "64")
ASKED: dict[str, tuple[int, tuple[str, ...]]] = {
    "few": (8, (*PLAIN, "--max-new-tokens", "8")),
    "plain": (36, PLAIN),
    "form": (16, (*FORM, "--engine", "inflight")),
    "form, transformers": (16, (*FORM, "--engine", "transformers")),
    "prompts": (8, (*PROMPTS, *CHANCE, "--batch-size", "4")),
    "prompts, form and summary": (8, (*ALL, "--batch-size", "4")),
    "chain": (8, ("--prompt", "Before: [{previous}] And now?", *CHANCE, "--chunk", "2")),
}
"""Name → how many clips there are, and the options of the command."""
STEADY = ("few", "plain", "form", "form, transformers")
"""Runs that start each stage once, so that a kill hits a stage in the middle."""
STAGES = ("frames", "encode", "decode", "summarize")
Run = Callable[[str], tuple[Place, tuple[str, ...]]]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that nobody disturbs, and its options."""

    @functools.cache
    def run(request: str) -> tuple[Place, tuple[str, ...]]:
        folder = tmp_path_factory.mktemp("resume")
        clips, options = ASKED[request]
        write_clips(folder / "clips", clips, seed=11)
        if "form" in request:
            (folder / "form.json").write_text(text_of(SHORT))
            options = (*options, "--schema", str(folder / "form.json"))
        place = Place(clips=folder / "clips", out=folder / "out", store=folder / "store")
        done = place.run(*options)
        assert done.returncode == 0, done.stderr
        return place, options

    return run


def moments() -> Sequence[tuple[str, str, int, str]]:
    """Return tuples of (run, stage, item, victim), spread over the work."""
    several = "prompts, form and summary"
    found = [("plain", "decode", 12, "server"), (several, "summarize", 6, "child")]
    for victim in ("child", "group"):
        # A child that is killed at the last but one may have stored the last one, too.
        late = 20 if victim == "child" else 23
        found += [("plain", stage, at, victim) for stage in STAGES[:3] for at in (1, 12, late)]
        found += [("prompts", "decode", at, victim) for at in (1, 13)]
        found += [(several, "decode", at, victim) for at in (2, 17)]
        found += [("chain", "decode", at, victim) for at in (3, 20)]
    found += [(name, "decode", 5, "group") for name in ("form", "form, transformers")]
    return [*found, (several, "summarize", 1, "group")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("requested", "stage", "item", "victim"), [("few", "encode", 1, "group"), *moments()]
)
def test_a_killed_run_resumes_to_the_same_bytes(
    undisturbed: Run, tmp_path: Path, requested: str, stage: str, item: int, victim: str
) -> None:
    whole, options = undisturbed(requested)
    place = Place(clips=whole.clips, out=tmp_path / "out", store=tmp_path / "store")
    status = kill_at(place, stage, item, victim, *options)
    assert status == (-9 if victim == "group" else 0)
    before = {name: place.journal(name) for name in STAGES}
    if victim != "group" and requested in STEADY:
        # Chunks are encoded and captioned while frames are cut, so all may have been there.
        twice = {name: s for name, s in place.stages().items() if s["processes"] == 2}
        assert stage in twice and set(twice) <= {stage, "encode", "decode"}
        assert "SIGKILL" in twice[stage]["warnings"][0]
    elif requested in STEADY:
        most = whole.journal(stage).total()
        assert item <= before[stage].total() < most, "the kill came after the stage's last item"
    resumed = place.run(*options)
    assert resumed.returncode == 0, resumed.stderr
    for name, published in before.items():
        after = place.journal(name)
        assert set(after.values()) <= {1}, f"{name} made an item twice"
        assert after.total() <= whole.journal(name).total()
        if name in place.stages() and requested in STEADY:
            assert place.stages()[name]["items"] == after.total() - published.total()
    assert place.captions() == whole.captions()
    assert not requested.startswith("form") or place.captions()[0]["fields"]
    if "summary" in requested:
        messages = [(p.out / "summaries.jsonl").read_bytes() for p in (place, whole)]
        assert messages[0] == messages[1]
    for kind in ("media", "features", "captions", "summaries"):
        assert place.stored(kind) == whole.stored(kind)
    assert place.stored("frames") == {}


def run_portion(store: Path, out: Path, first: str, *sources: str) -> Place:
    place = Place(clips=Path(first), out=out, store=store)
    done = place.run(*sources, "--quiet")
    assert done.returncode == 0, done.stderr
    return place


@pytest.mark.slow
def test_two_orders_of_workers_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write_clips(tmp_path / "clips", 12, seed=3)
    clips = (str(tmp_path / "clips"),)
    config = CaptionConfig(sources=clips, model="demo", out=str(tmp_path / "cut"))
    portions, _ = partitions_of(config, max_files=3)
    assert len(portions) == 4
    found = set()
    for order, workers in enumerate((1, 3)):
        folder = tmp_path / str(order)
        mixed = random.Random(order).sample(portions, len(portions))
        with ThreadPoolExecutor(workers) as pool:
            outs = [folder / portion.name for portion in mixed]
            sources = [f"@{portion.path}" for portion in mixed]
            list(pool.map(functools.partial(run_portion, folder / "store"), outs, sources))
        gathered = run_portion(folder / "store", folder / "all", *(f"@{p.path}" for p in portions))
        assert sum(stage["items"] for stage in gathered.stages().values()) == 0
        found.add((gathered.out / "captions.jsonl").read_bytes())
    assert len(found) == 1


def real(place: Place, *more: str, kill: str = "") -> "subprocess.CompletedProcess[str]":
    """Run a command whose stages are slow, in processes of their own."""
    environment = {**os.environ, CHUNK_SECONDS: "0.2", **({KILL: kill} if kill else {})}
    command = slow(place.command("--chunk", "1", *more))
    return completed(command, timeout=SECONDS, env=environment)


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
