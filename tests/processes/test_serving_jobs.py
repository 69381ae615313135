"""Jobs of a server that is killed at random moments, and of one that is sent more than it takes."""

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import pytest

from tests.support.attacks import resident_bytes
from tests.support.jobs import (
    OPTIONS,
    SERVE,
    all_rows,
    job_of,
    post,
    rows_of_command,
    wait_for,
    without_source,
)
from tests.support.media import write_video
from tests.support.serving import Serving, serving

AT_ONCE = 200
MOST = 100
FPS = 4
EARLY_AND_LATE = (1.0, 12.0)
"""Seconds after which a server is killed: a job begins after about 3, and works after about 8."""
AT_WORK = (0.0, 0.3)
"""Seconds after the first row."""
MOST_GROWN = 64 << 20
"""Bytes by which the memory of a server may grow that 200 uploads of a MiB are sent to."""


@contextlib.contextmanager
def server_in(folder: Path, number: int) -> Iterator[Serving]:
    """The server of that number over the jobs and the store of a folder."""
    (own := folder / f"server-{number}").mkdir()
    options = ("--jobs", folder / "jobs", "--root", folder / "media")
    env = {"PENSTOCK_STORE": str(folder / "store")}
    with serving(own, *options, command=SERVE, env=env) as server:
        yield server


def own_memory(server: Serving) -> int:
    return resident_bytes(server.process.pid, "RssAnon:", "RssShmem:")


def holder_of(place: Path) -> int:
    """Return the process that last ran the command of a job; 0: none."""
    lock = place / "out" / ".lock"
    return int(lock.read_text().strip() or 0) if lock.exists() else 0


def is_command(pid: int) -> bool:
    try:
        return b"caption" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


@pytest.mark.parametrize(
    ("kills", "seconds", "moments"),
    [
        (1, 6, AT_WORK),
        pytest.param(20, 400, EARLY_AND_LATE, marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
    ],
)
def test_a_server_killed_at_random_moments_makes_the_rows_of_the_command(
    kills: int, seconds: int, moments: tuple[float, float], tmp_path: Path
) -> None:
    (tmp_path / "media").mkdir()
    ticks, rate = range(FPS * seconds), Fraction(1, FPS)
    clip = write_video(tmp_path / "media" / "long.mp4", ticks=ticks, time_base=rate)
    expected = rows_of_command(clip, tmp_path, **OPTIONS)
    assert len(expected) == seconds / OPTIONS["chunk"]
    draw, job = random.Random(kills), ""
    for number in range(kills):
        with server_in(tmp_path, number) as server:
            if not number:
                job = post(server, path="long.mp4", **OPTIONS)["id"]
            assert job_of(server, job)["state"] in ("queued", "in_progress", "completed")
            while moments is AT_WORK and not job_of(server, job)["rows"]:
                time.sleep(0.05)
            time.sleep(draw.uniform(*moments))
            known = job_of(server, job, limit=1000)["rows"]
            assert without_source(known) == without_source(expected)[: len(known)]
            os.kill(server.process.pid, signal.SIGKILL)
            server.process.wait()
            time.sleep(1.0)
            assert not is_command(holder_of(tmp_path / "jobs" / job)), "it outlives its server"
    with server_in(tmp_path, kills) as server:
        assert wait_for(server, job)["state"] == "completed"
        rows = all_rows(server, job)
        made = {stage["name"]: stage for stage in job_of(server, job)["stages"]}
    totals = {name: (stage["done"], stage["total"]) for name, stage in made.items()}
    assert totals == dict.fromkeys(("frames", "encode", "decode"), (len(expected),) * 2)
    assert without_source(rows) == without_source(expected)
    assert {row["source"] for row in rows} == {"long.mp4"}


@pytest.mark.slow
def test_two_hundred_jobs_at_once_are_taken_or_refused_and_none_is_lost(tmp_path: Path) -> None:
    picture = (b"\xff\xd8\xff" + os.urandom(64)).ljust(1 << 20, b"\0")
    (tmp_path / "media").mkdir()
    with server_in(tmp_path, 0) as server:
        before = own_memory(server)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            sent = [pool.submit(server.ask, "POST", "/v1/jobs", picture) for _ in range(AT_ONCE)]
            answers = [each.result() for each in sent]
        grown = own_memory(server) - before
        taken = [json.loads(a.body)["id"] for a in answers if a.status == 202]
        refused = [answer for answer in answers if answer.status != 202]
        assert len({*taken}) == len(taken) >= MOST
        assert {answer.status for answer in refused} == {429}
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
    assert grown < MOST_GROWN, grown
    with server_in(tmp_path, 1) as server:
        listed = json.loads(server.ask("GET", "/v1/jobs?limit=100").body)["data"]
        assert {*taken} == {job["id"] for job in listed}
        job = wait_for(server, taken[0])  # its picture is none
        assert (job["state"], job["rows"]) == ("failed", []) and job["error"]
        for name in (taken[0], taken[-1]):
            assert server.ask("DELETE", f"/v1/jobs/{name}").status == 200
        assert job_of(server, taken[-1])["state"] == "cancelled"
        assert server.ask("GET", f"/v1/jobs/{taken[0]}").status == 404
        assert not (tmp_path / "jobs" / taken[0]).exists()
