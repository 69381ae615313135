"""Stages that share several simulated GPUs: the bytes of one, whatever happens to one of them."""

import fcntl
import json
import signal
import subprocess
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from penstock_demo.clips import write_clips
from tests.support import gpus
from tests.support.fake_gpu.state import Machine
from tests.support.pipeline import ROOT, Place, read_lines
from tests.support.slow_desk import Desk, slow
from tests.support.slow_tower import KILL
from tests.support.slow_tower import SECONDS as CHUNK_SECONDS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CLIPS = 6
WITHOUT_LOCKS = """
import artifacts.disk.locks
artifacts.disk.locks.lock_byte = lambda *given: True
"""
"""As on a file system without byte locks, in this process and in those that are forked from it."""


def machine(count: int, **last: Any) -> Machine:
    """So many equal GPUs; `last` changes the last one."""
    cards = [gpus.gpu(at) for at in range(count)]
    return gpus.plain(gpus=(*cards[:-1], replace(cards[-1], **last)))


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    desk = Desk(tmp_path_factory.mktemp("desk"), "0.3", "--batch-size", "2")
    write_clips(desk.clips, CLIPS, seed=3)
    return desk


@pytest.fixture(scope="module")
def alone(desk: Desk) -> Place:
    place = desk.place("alone")
    done = desk.run(place, machine(1))
    assert done.returncode == 0, done.stderr
    return place


def published(place: Place, stage: str) -> Counter[str]:
    """Key → how often any process of the stage published it."""
    found: Counter[str] = Counter()
    for path in (place.out / "logs").glob(f"{stage}*.items.jsonl"):
        found.update(line["key"] for line in read_lines(path))
    return found


def made_on(place: Place, stage: str) -> list[int]:
    """How many chunks each GPU made."""
    return [of["items"] for of in place.stages()[stage]["devices"].values()]


def check_same(place: Place, alone: Place, *, often: bool = False) -> None:
    """Check that a run made what one GPU alone made, and unless it ran often nothing twice."""
    for kind in ("frames", "features", "captions"):
        assert place.stored(kind) == alone.stored(kind)
    texts = [[row["caption"] for row in each.captions()] for each in (place, alone)]
    assert texts[0] == texts[1]
    for stage in () if often else ("frames", "encode", "decode"):
        counts = published(place, stage)
        assert counts and set(counts.values()) == {1}, (stage, counts)


@pytest.mark.parametrize("count", [2, 4])
def test_several_gpus_make_the_bytes_of_one(desk: Desk, alone: Place, count: int) -> None:
    place = desk.place(f"{count}")
    done = desk.run(place, machine(count), "--gpus", "all")
    assert done.returncode == 0, done.stderr
    check_same(place, alone)
    devices = place.stages()["encode"]["devices"]
    assert len(devices) > 1 and sum(of["items"] for of in devices.values()) == CLIPS, devices
    assert sum(made_on(place, "decode")) == CLIPS
    if count == 2:
        assert min(made_on(place, "decode")) >= 2  # its share, in whole batches, or more
    assert not [*(place.out / "logs").glob("*.feed"), *(place.out / "logs").glob("*.share")]


@pytest.mark.parametrize(
    ("verb", "more", "output"),
    [
        ("embed", (), "embeddings.npy"),
        ("label", ("--labels", "a red square,a blue circle"), "labels.jsonl"),
    ],
)
def test_vectors_and_labels_are_those_of_one_gpu(
    desk: Desk, verb: str, more: tuple[str, ...], output: str
) -> None:
    written = []
    for count in (1, 2, 4):
        place = replace(desk.place(f"{verb}-{count}"), verb=verb)
        done = desk.run(place, machine(count), "--gpus", "all", "--fps", "4", *more)
        assert done.returncode == 0, done.stderr
        written.append((place.out / output).read_bytes())
        devices = place.stages()["embed"]["devices"]
        assert len(devices) == (0 if count == 1 else min(count, len(devices)))
        assert count == 1 or len(devices) > 1, devices
    assert written[0] == written[1] == written[2]


@pytest.mark.parametrize("moment", ["encode 2", "decode 1"])
def test_a_killed_process_of_one_gpu_costs_what_it_had_not_published(
    desk: Desk, alone: Place, moment: str
) -> None:
    name = moment.replace(" ", "-")
    place, mark = desk.place(name), desk.folder / name
    done = desk.run(place, machine(2), "--gpus", "2", **{KILL: f"{moment} 0 {mark}"})
    assert done.returncode == 0 and mark.exists(), done.stderr
    check_same(place, alone)


def test_without_byte_locks_a_killed_process_costs_no_chunk(desk: Desk, alone: Place) -> None:
    place, mark = desk.place("lockless"), desk.folder / "lockless"
    extra = {KILL: f"decode 1 0 {mark}"}
    done = desk.run(place, machine(2), "--gpus", "all", patch=WITHOUT_LOCKS, **extra)
    assert done.returncode == 0 and mark.exists(), done.stderr
    check_same(place, alone)


def test_a_gpu_that_another_job_uses_holds_nothing_up(desk: Desk, alone: Place) -> None:
    lock = desk.folder / "PENSTOCK_LOCKS" / f"penstock-{gpus.gpu(1).uuid}.lock"
    place = desk.place("locked")
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = desk.run(place, machine(2), "--gpus", "all")
    assert done.returncode == 0, done.stderr
    assert "waiting for CUDA:1" in done.stderr
    check_same(place, alone)
    assert made_on(place, "decode") == [CLIPS]


def test_a_gpu_without_memory_is_left_out(desk: Desk, alone: Place) -> None:
    place = desk.place("full")
    here = machine(2, others={1: (8 << 30) - (100 << 20)})
    done = desk.run(place, here, "--gpus", "all")
    assert done.returncode == 0, done.stderr
    assert "cuda:1 is left out from now on" in done.stderr, done.stderr
    check_same(place, alone)
    assert not json.loads((place.out / "run.json").read_text())["rungs"]


@pytest.mark.timeout(3600)
def test_a_run_that_is_killed_anywhere_ends_with_the_same_bytes(desk: Desk, alone: Place) -> None:
    place, kills = desk.place("killed"), 0
    for number, moment in enumerate(
        f"{stage} {at}" for at in (1, 2, 3) for stage in ("frames", "encode", "decode")
    ):
        mark = desk.folder / f"killed-{number}"
        done = desk.run(place, machine(2), "--gpus", "all", **{KILL: f"{moment} PARENT {mark}"})
        if not mark.exists():  # this process had less to do
            break
        assert done.returncode == -signal.SIGKILL
        kills += 1
    assert kills >= 3
    done = desk.run(place, machine(2), "--gpus", "all")
    assert done.returncode == 0, done.stderr
    check_same(place, alone, often=True)


def test_ctrl_c_ends_the_processes_of_all_gpus(desk: Desk) -> None:
    place = desk.place("stopped")
    command = slow(place.command("--gpus", "all", "--batch-size", "2"))
    environment = desk.environment(place, machine(2), **{CHUNK_SECONDS: "3"})
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if b"encoding" in line:
                break
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=12)
    assert running.returncode == 4
