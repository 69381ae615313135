"""A studio killed again and again while it edits and runs: what it acknowledged stays, and its runs
go on, one at a time."""

import contextlib
import http.client
import itertools
import json
import os
import random
import signal
import threading
from pathlib import Path

import pytest

from artifacts.texts.edits import read_edits
from flows.core.machine.versions import seconds_of
from penstock_demo import CLIPS
from tests.support.disks import small_disk
from tests.support.media import write_video
from tests.support.reports import captions_of, media_file, write_run
from tests.support.studios import OpenStudio, all_done

pytestmark = pytest.mark.slow

KILLS = 50
NOTHING = {"caption": None, "review": ""}


def edit_until_killed(studio: OpenStudio, run: str, of: str, number: int) -> list[str]:
    """Send edits, each based on the one before, and return the ids of those acknowledged."""
    done: list[str] = []
    try:
        now = studio.get(f"run/{run}/captions")["edits"].get(of, NOTHING)
        for count in range(1000):
            after = {"caption": f"kill {number}, edit {count}", "review": ""}
            name = os.urandom(8).hex()
            change = {"of": of, **after, "was": now}
            answer = studio.post(f"run/{run}/edits", {"id": name, "does": "x", "changes": [change]})
            assert answer.status == 200, answer.body
            done.append(name)
            now = after
    except (OSError, http.client.HTTPException, json.JSONDecodeError):
        pass
    return done


def test_fifty_kills_lose_no_edit_and_no_run(tmp_path: Path) -> None:
    file = media_file(write_video(tmp_path / "a.mp4", ticks=range(0, 60, 6)))
    write_run(tmp_path / "out", [(file, captions_of(file, ["A ring."]))])
    studio = OpenStudio(CLIPS, tmp_path / "out", tmp_path / "store").start()
    values = {"sources": [str(CLIPS)], "model": "demo"}
    for name in ("first", "second", "third"):
        out = str(tmp_path / "out" / name)
        studio.done("runs", {"values": {**values, "out": out, "prompt": f"{name}?"}})
    own = studio.get("start")["own"]
    of = studio.get(f"run/{own}/captions")["media"][0]["captions"][0]["key"]
    draw, acknowledged = random.Random(3), list[str]()
    for number in range(KILLS):
        assert studio.process is not None
        kill = threading.Timer(draw.uniform(0.0, 0.4), studio.process.kill)
        kill.start()
        acknowledged += edit_until_killed(studio, own, of, number)
        kill.join()
        studio.end(signal.SIGKILL)
        studio.start()
    journal = read_edits(studio.out)
    assert [each for each in acknowledged if each not in journal.ids] == []
    assert len(acknowledged) > KILLS
    assert studio.get(f"run/{own}/captions")["edits"][of]["caption"] == journal.now[of].caption
    runs = studio.wait(lambda runs: len(runs) == 3 and all_done(runs))
    records = [json.loads((Path(run["out"]) / "run.json").read_text()) for run in runs]
    assert [record["captions"] for record in records] == [12] * 3
    times = [(seconds_of(r["started"]), seconds_of(r["updated"])) for r in records]
    assert all(ended <= began for (_, ended), (began, _) in itertools.pairwise(times))
    assert studio.end() == 0


def test_a_run_that_a_full_disk_ends_says_so(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "3m") as disk:
        studio = OpenStudio(CLIPS, disk / "out", tmp_path / "store").start()
        values = {"sources": [str(CLIPS)], "model": "demo", "chunk": 0.2, "frames": 2}
        studio.done("runs", {"values": values})
        studio.wait(lambda runs: runs[0]["status"] is not None)
        with contextlib.suppress(OSError), open(disk / "other", "wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 12))
        (found,) = studio.wait(lambda runs: runs[0]["state"] in ("died", "failed"))
        assert f"the disk of {disk / 'out'}" in found["error"] and "full" in found["error"]
        (disk / "other").unlink()
        studio.done(f"runs/{found['id']}", {"do": "go on"})
        studio.wait(all_done)
        assert studio.end() == 0
