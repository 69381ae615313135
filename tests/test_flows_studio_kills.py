"""A studio killed again and again while it edits and runs: what it acknowledged stays, and its runs
go on, one at a time."""

import contextlib
import http.client
import itertools
import json
import os
import random
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from artifacts.edits import read_edits
from flows.results.run_record import seconds_of
from penstock_demo import CLIPS
from scripts.stage_processes import descendants
from tests.support.browser import browsing
from tests.support.disks import small_disk
from tests.support.media import write_video
from tests.support.pipeline import PENSTOCK, ROOT
from tests.support.reports import media_file, said, write_run
from tests.support.studio_page import ENTER, READY, SAVED, WORDS
from tests.support.studios import OpenStudio, all_done

pytestmark = pytest.mark.slow

KILLS = 50
BROWSER_KILLS = 12
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
    write_run(tmp_path / "out", [(file, said(file, ["A ring."]))])
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


def test_fifty_killed_stages_lose_no_edit_and_no_caption(tmp_path: Path) -> None:
    """Stages are killed while runs work and a person edits: the run starts
    them again, or fails with a reason, and then the test sends "go on"."""
    file = media_file(write_video(tmp_path / "a.mp4", ticks=range(0, 60, 6)))
    write_run(tmp_path / "out", [(file, said(file, ["A ring."]))])
    studio = OpenStudio(CLIPS, tmp_path / "out", tmp_path / "store").start()
    own = studio.get("start")["own"]
    of = studio.get(f"run/{own}/captions")["media"][0]["captions"][0]["key"]
    values = {"sources": [str(CLIPS)], "model": "demo", "chunk": 0.5, "frames": 2}
    draw, kills, gone_on, acknowledged, outs = random.Random(5), 0, 0, list[str](), list[Path]()
    while kills < KILLS or studio.runs()[-1]["state"] != "done":
        runs = studio.runs()
        if all(run["state"] == "done" for run in runs):
            outs.append(tmp_path / "out" / f"run-{len(outs)}")
            prompt = {"prompt": f"{len(outs)}?", "out": str(outs[-1])}
            studio.done("runs", {"values": {**values, **prompt}})
        elif (run := runs[-1])["state"] in ("failed", "died", "interrupted"):
            assert "SIGKILL" in run["error"], run
            studio.done(f"runs/{run['id']}", {"do": "go on"})
            gone_on += 1
        elif kills < KILLS and run["pid"] and (stages := stages_of(run["pid"])):
            with contextlib.suppress(ProcessLookupError):
                os.kill(draw.choice(stages), signal.SIGKILL)
                kills += 1
        now = studio.get(f"run/{own}/captions")["edits"].get(of, NOTHING)
        change = {"of": of, "caption": f"edit {len(acknowledged)}", "review": "", "was": now}
        acknowledged.append(os.urandom(8).hex())
        deed = {"id": acknowledged[-1], "does": "x", "changes": [change]}
        studio.done(f"run/{own}/edits", deed)
        time.sleep(draw.uniform(0.1, 1.0))
    print(f"{kills} stages killed in {len(outs)} runs, {gone_on} runs went on when told to")
    assert [each for each in acknowledged if each not in read_edits(studio.out).ids] == []
    assert studio.end() == 0
    texts = [captions_in(out) for out in outs]
    command = [*PENSTOCK, "caption", str(CLIPS), "--model=demo", "--chunk=0.5", "--frames=2"]
    command += ["--prompt=1?", f"--store={tmp_path / 'other'}", f"--out={tmp_path / 'unkilled'}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert texts[0] == captions_in(tmp_path / "unkilled")
    assert all(len(found) == len(texts[0]) for found in texts)


def stages_of(pid: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the run ended
        return descendants(pid)
    return []


def captions_in(out: Path) -> list[tuple[str, float, str]]:
    lines = map(json.loads, (out / "captions.jsonl").read_text().splitlines())
    return [(line["media_path"], line["start"], line["caption"]) for line in lines]


@pytest.mark.browser
def test_a_killed_browser_loses_no_edit_and_no_run(tmp_path: Path) -> None:
    studio = OpenStudio(CLIPS, tmp_path / "out", tmp_path / "store").start()
    studio.done("runs", {"values": {"sources": [str(CLIPS)], "model": "demo"}})
    run, profile = studio.get("start")["own"], tmp_path / "profile"
    studio.wait(all_done)
    more = {"sources": [str(CLIPS)], "model": "demo", "chunk": 0.2, "frames": 2}
    studio.done("runs", {"values": {**more, "out": str(tmp_path / "out" / "more")}})
    (pid,) = {each["pid"] for each in studio.wait(lambda runs: runs[1]["pid"] > 0)[1:]}
    texts = list[str]()
    for number in range(BROWSER_KILLS):
        with contextlib.suppress(AssertionError, OSError), browsing(profile) as browser:
            browser.open(f"{studio.address}run/{run}/")
            browser.wait(READY)
            assert browser.run(WORDS)[: len(texts)] == texts
            browser.run(f"page.go({number})")
            browser.press("e")
            browser.run("document.activeElement.value = ''")
            browser.press(*f"Edit {number}.", ENTER)
            browser.wait(SAVED)
            texts.append(f"Edit {number}.")
            for each in stages_of(os.getpid()):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    if f"--user-data-dir={profile}" in Path(f"/proc/{each}/cmdline").read_text():
                        os.kill(each, signal.SIGKILL)
            browser.run("return 1")
        assert len(texts) == number + 1
    assert [edit.caption for edit in read_edits(studio.out).now.values()] == texts
    (found,) = studio.wait(all_done)[1:]
    assert found["pid"] == pid, "the run never ended"
    assert studio.end() == 0


def test_a_run_is_stopped_and_goes_on_and_a_killed_one_says_so(tmp_path: Path) -> None:
    studio = OpenStudio(CLIPS, tmp_path / "out", tmp_path / "store").start()
    try:
        values = {"sources": [str(CLIPS)], "model": "demo", "out": str(tmp_path / "out" / "one")}
        run = studio.done("runs", {"values": values})["id"]
        again = studio.post("runs", {"values": values})
        assert again.status == 422 and b"waiting or running already" in again.body
        studio.wait(lambda runs: runs[0]["status"] is not None)
        studio.done(f"runs/{run}", {"do": "stop"})
        (found,) = studio.wait(lambda runs: runs[0]["state"] == "interrupted")
        assert found["status"]["advice"]
        assert studio.post(f"runs/{run}", {"do": "stop"}).status == 422
        studio.done(f"runs/{run}", {"do": "go on"})
        (found,) = studio.wait(lambda runs: runs[0]["status"] is not None and runs[0]["pid"] > 0)
        os.kill(found["pid"], signal.SIGKILL)
        (found,) = studio.wait(lambda runs: runs[0]["state"] == "died")
        assert found["error"] == "its process was killed, by a user or for lack of memory"
        studio.done(f"runs/{run}", {"do": "go on"})
        (found,) = studio.wait(all_done)
        assert found["status"]["captions"] == 12
        studio.done(f"runs/{run}", {"do": "remove"})
        assert studio.runs() == []
        values |= {"model": "penstock-demo/none", "out": str(tmp_path / "out" / "two")}
        studio.done("runs", {"values": values})
        (found,) = studio.wait(lambda runs: runs[0]["state"] == "failed")
        assert "penstock-demo/none" in found["error"] and "\n" not in found["error"]
    finally:
        studio.end()


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


def test_captions_are_shown_while_they_are_made(tmp_path: Path) -> None:
    """A run of many captions in short chunks grows under the page's eyes."""
    studio = OpenStudio(CLIPS, tmp_path / "out", tmp_path / "store").start()
    try:
        values = {"sources": [str(CLIPS)], "model": "demo", "chunk": 0.2, "frames": 2}
        studio.done("runs", {"values": values})
        own, seen = studio.get("start")["own"], set[int]()
        until = time.monotonic() + 240
        while (state := studio.runs()[0]["state"]) not in ("done", "failed"):
            assert time.monotonic() < until
            found = studio.get(f"run/{own}/captions")
            seen.add(sum(len(medium["captions"]) for medium in found["media"]))
            time.sleep(0.5)
        assert state == "done"
        total = sum(len(m["captions"]) for m in studio.get(f"run/{own}/captions")["media"])
        assert len(seen - {0, total}) > 0, (seen, total)
    finally:
        studio.end()
