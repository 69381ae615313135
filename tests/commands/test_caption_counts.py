"""Every count that a session shows: in its progress, its last line, `status`, the report and the
files. Counts of one unit agree."""

import json
import re
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from flows.core.console.lines import duration
from penstock_demo.clips import write_clips
from tests.support.commands import begun, completed
from tests.support.media import write_video
from tests.support.pipeline import PENSTOCK, SECONDS, place_below, read_lines

pytestmark = pytest.mark.slow

UNITS = ("file", "chunk", "image", "caption", "text", "summary", "mark", "label")
COUNT = re.compile(r"(\d[\d,]*) (?:\w+ )?(" + "|".join(UNITS) + r"|summaries)s?\b")
"""A number with its unit, such as `8 captions`."""


class Ended(NamedTuple):
    """A command, and what it printed."""

    status: int
    lines: list[str]


class Session:
    """Commands of one user over one folder of outputs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.media, self.out = folder / "media", folder / "out"
        self.media.mkdir()

    def run(self, *more: str, stop_at: str = "", by: signal.Signals = signal.SIGINT) -> Ended:
        """Caption the media. `stop_at`: send the signal `by`, that of Ctrl-C, at the first line
        that has this."""
        running = begun(place_below(self.folder, self.media).command(*more))
        killer = threading.Timer(SECONDS, running.kill)
        killer.start()
        lines = []
        assert running.stdout is not None
        with running.stdout:
            for line in running.stdout:
                lines.append(line.rstrip("\n"))
                if stop_at and stop_at in line:
                    running.send_signal(by)
                    stop_at = ""
        status = running.wait()
        killer.cancel()
        assert not stop_at, lines
        return Ended(status, lines)

    def status(self) -> Any:
        return json.loads(completed([*PENSTOCK, "status", "--json", str(self.out)]).stdout)

    def rows(self, name: str) -> list[dict[str, Any]]:
        path = self.out / name
        return read_lines(path) if path.exists() else []


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(tmp_path)


def counts_in(text: str) -> dict[str, int]:
    """Return the first count of each unit, and what `failed` counts as a unit of its own."""
    found: dict[str, int] = {}
    for number, unit in COUNT.findall(text):
        unit = "summary" if unit.startswith("summar") else unit
        found.setdefault(unit, int(number.replace(",", "")))
    if failed := re.search(r"(\d+) of (\d+) files? failed", text):
        found["failed"], found["file"] = int(failed[1]), int(failed[2])
    elif failed := re.search(r"(\d+) files?, (\d+) failed", text):
        found["file"], found["failed"] = int(failed[1]), int(failed[2])
    return found


def surfaces(session: Session, last: Ended) -> Iterator[tuple[str, dict[str, int]]]:
    """Yield the name of each place that shows counts of the whole folder, and its counts."""
    yield "last line", counts_in(last.lines[-1])
    shown = completed([*PENSTOCK, "status", str(session.out)]).stdout
    whole = next(line for line in shown.splitlines() if " failed" in line and "file" in line)
    yield "status", counts_in(whole)
    page = completed([*PENSTOCK, "report", str(session.out)])
    assert page.returncode == 0, page.stderr
    text = (session.out / "report.html").read_text(encoding="utf-8")
    (data,) = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', text, re.S)[:1]
    names = dict(captions="caption", files="file", summaries="summary") | {"files failed": "failed"}
    totals = ((names.get(name), value) for name, value in json.loads(data)["totals"])
    yield "report", {name: int(value.replace(",", "")) for name, value in totals if name}
    captions, failures = session.rows("captions.jsonl"), session.rows("failures.jsonl")
    if captions:
        yield "captions.jsonl", {"caption": len(captions)}
    yield "failures.jsonl", {"failed": len({row["media_path"] for row in failures})}


def assert_seconds_agree(session: Session, ended: Ended, verbs: Mapping[str, str]) -> None:
    """Assert that the last line of each stage names the seconds that `status` and `run.json` have.
    `verbs`: stage → its verb."""
    found = {stage["name"]: stage["seconds"] for stage in session.status()["stages"]}
    record = json.loads((session.out / "run.json").read_text(encoding="utf-8"))
    assert found == {stage["name"]: stage["seconds"] for stage in record["stages"]}
    for stage, verb in verbs.items():
        lines = [line for line in ended.lines if re.match(rf"{verb}: .* in ", line)]
        assert [line.split(" in ")[1] for line in lines] == [duration(found[stage])], lines


def assert_agree(session: Session, last: Ended) -> dict[str, int]:
    """Assert that all surfaces say the same of each unit, and return it."""
    agreed: dict[str, tuple[str, int]] = {}
    for name, counts in surfaces(session, last):
        for unit, count in counts.items():
            first = agreed.setdefault(unit, (name, count))
            assert first[1] == count, (unit, first, (name, count), last.lines)
    return {unit: count for unit, (_, count) in agreed.items()}


def progress(ended: Ended, verb: str) -> Counter[str]:
    """Return what a stage says that it made: sums of its lines by unit."""
    made = Counter[str]()
    for line in ended.lines:
        if match := re.fullmatch(rf"{verb}: ([\d,]+) (\w+?)(?:s|) in .*", line):
            made[match[2]] += int(match[1].replace(",", ""))
    return made


def add_clips(session: Session, count: int = 3) -> None:
    write_clips(session.media, count, seed=4)


def break_one(session: Session) -> None:
    (session.media / "broken.mp4").write_bytes(b"\0\0\0\x18ftypisom" + bytes(64))


def test_counts_of_one_unit_agree(session: Session) -> None:
    add_clips(session)
    first = session.run("--chunk", "3")
    counts = assert_agree(session, first)
    assert first.status == 0 and counts["file"] == 3 and counts["failed"] == 0
    assert progress(first, "captioning") == {"caption": counts["caption"]}
    assert progress(first, "encoding") == {"chunk": counts["caption"]}
    verbs = {"frames": "cutting frames", "encode": "encoding", "decode": "captioning"}
    assert_seconds_agree(session, first, verbs)


def test_counts_agree_with_a_file_that_fails(session: Session) -> None:
    add_clips(session)
    break_one(session)
    counts = assert_agree(session, session.run("--chunk", "3"))
    assert (counts["file"], counts["failed"]) == (4, 1)


def test_counts_agree_with_several_prompts(session: Session) -> None:
    add_clips(session)
    prompts = ("--prompts", "what=What moves?", "--prompts", "where=Where is it?")
    ended = session.run("--chunk", "3", *prompts)
    counts = assert_agree(session, ended)
    assert progress(ended, "captioning") == {"caption": counts["caption"]}
    assert 2 * progress(ended, "encoding")["chunk"] == counts["caption"]


def test_counts_agree_after_a_stop(session: Session) -> None:
    """Ctrl-C while frames are cut, and the same command again."""
    add_clips(session, 12)
    ended = session.run("--chunk", "1", stop_at="cutting frames")
    assert ended.status == 4, ended
    made = assert_agree_after_a_stop(session, ended)
    last = session.run("--chunk", "1")
    counts = assert_agree(session, last)
    assert progress(last, "captioning")["caption"] == counts["caption"] - made


def test_counts_agree_after_a_kill(session: Session) -> None:
    """SIGKILL while frames are cut: `status` counts all that was published, and the failure."""
    add_clips(session, 12)
    break_one(session)
    ended = session.run("--chunk", "1", stop_at="failed: ", by=signal.SIGKILL)
    assert ended.status == -signal.SIGKILL
    record = session.status()
    assert record["state"] == "died" and record["media"]["failed"] == 1
    assert record["stages"][0]["done"] == published(session, "frames")
    counts = assert_agree(session, session.run("--chunk", "1"))
    record = json.loads((session.out / "run.json").read_text(encoding="utf-8"))
    for name in ("frames", "encode", "decode"):
        assert sum(run["items"][name] for run in record["history"]) == counts["caption"], name


def published(session: Session, stage: str) -> int:
    """Return how many items the processes of a stage published, by its journal."""
    journal = session.out / "logs" / f"{stage}.items.jsonl"
    return len(read_lines(journal)) if journal.exists() else 0


def test_counts_agree_on_a_video_that_ends_early(session: Session) -> None:
    """A video that ends early is named by each run over it."""
    add_clips(session)
    cut = session.media / "clip-01.mp4"
    write_video(cut, ticks=range(180), container_options={"movflags": "faststart"})
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 3 // 4])
    for _ in range(2):
        ended = session.run("--chunk", "3")
        assert "1 of 3 files with warnings (`warnings` in captions.jsonl)" in ended.lines[-1]
        shown = completed([*PENSTOCK, "status", str(session.out)]).stdout
        assert "3 files, 0 failed, 1 with warnings (`warnings` in captions.jsonl)" in shown
        assert not any(line.startswith("replaces in") for line in ended.lines)
    assert_agree(session, ended)


def assert_agree_after_a_stop(session: Session, ended: Ended) -> int:
    """Return the captions that there are: as many in the file as `status` says. The frames in the
    last line, in `status` and in the store are as many, too."""
    status = session.status()
    stages = {stage["name"]: stage for stage in status["stages"]}
    frames = stages["frames"]
    assert frames["done"] == frames["items"] == published(session, "frames")
    assert progress(ended, "cutting frames")["chunk"] == frames["done"]
    assert frames["pending"] or not status["media"]["open"]
    rows = len(session.rows("captions.jsonl"))
    assert stages["decode"]["items"] + stages["decode"]["before"] == rows
    return rows
