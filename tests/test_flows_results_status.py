"""What `penstock status` says of a run while it works and after."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from artifacts.captions import Failure
from flows.cli.main import main
from flows.results.run_read import load_record
from flows.results.run_record import TIMELINE_POINTS, RunRecord, coarser
from flows.results.status import StageStatus, advice, cells, stages_of
from stages.process.outcome import StageOutcome


def failure(name: str, stage: str) -> Failure:
    return Failure(
        media_path=name, source=name, stage=stage, error="x", message="broken", hint="Mend it"
    )


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    made = RunRecord(tmp_path)
    made.expect("encode", 100, 10)
    return made


def encode(record: RunRecord, now: float) -> StageStatus:
    return next(s for s in stages_of(record.value, now) if s.name == "encode")


def work(record: RunRecord, began: float, samples: list[list[float]], items: int) -> None:
    """A stage that has made so many items since it began, with samples of how many when."""
    record.begin("encode")
    record.stage("encode").update(since=began, recent=samples, running=items)


def test_speed_is_told_of_the_last_minute_and_of_all(record: RunRecord) -> None:
    work(record, 1000.0, [[1100.0, 10], [1150.0, 20], [1190.0, 40]], 45)
    stood = encode(record, 1200.0)
    assert (stood.done, stood.pending, stood.running) == (55, 45, True)
    assert stood.rate == pytest.approx(45 / 200)
    assert stood.rate_last_minute == pytest.approx(25 / 50)
    assert stood.seconds_left == pytest.approx(45 / 0.5)


def test_a_stage_that_makes_nothing_for_a_minute_says_so(record: RunRecord) -> None:
    work(record, 1000.0, [[1010.0, 5]], 5)
    stood = encode(record, 1200.0)
    assert stood.rate_last_minute == 0
    assert stood.seconds_left == pytest.approx(85 / (5 / 200))  # by all of it


def test_time_left_is_unknown_before_anything_is_made(record: RunRecord) -> None:
    record.begin("encode")
    assert encode(record, time.time() + 30).seconds_left is None


def test_files_not_looked_into_are_reckoned_with_by_their_headers(record: RunRecord) -> None:
    record.value["plan"]["chunks"] = 500
    record.value["media"]["open"] = 7
    stood = encode(record, time.time())
    assert (stood.pending, stood.about) == (490, True)
    record.value["media"]["open"] = 0
    assert (encode(record, time.time()).pending, encode(record, time.time()).about) == (90, False)


def test_what_the_model_refuses_is_not_pending(record: RunRecord) -> None:
    record.fail("encode", {"media_path": "a.mp4", "message": "too narrow", "hint": "Widen it"})
    stood = encode(record, time.time())
    assert (stood.failed, stood.pending) == (1, 89)


def test_outcomes_add_up_over_waves(record: RunRecord) -> None:
    for items in (20, 30):
        record.begin("encode")
        for _ in range(items):
            record.count_item("encode")
        outcome = StageOutcome(name="encode", items=items, seconds=10.0, peak_host_bytes=items)
        record.add(outcome, attention="sdpa", precision={})
    stood = encode(record, time.time() + 999)
    assert (stood.done, stood.running, stood.seconds, stood.peak_host_bytes) == (60, False, 20, 30)
    assert stood.rate == pytest.approx(2.5)


def test_the_peak_is_told_while_a_stage_works(record: RunRecord) -> None:
    record.begin("encode")
    for host in (5_000_000, 4_000_000):
        seen = {"seconds": 1.0, "host_bytes": host, "device_bytes": 0}
        record.memory("encode", {**seen, "peak_host_bytes": host, "peak_device_bytes": 0})
    stood = encode(record, time.time())
    assert (stood.peak_host_bytes, stood.taken_bytes, stood.now_bytes) == (5_000_000, 0, 0)
    record.imported("encode", {"loaded_bytes": 3_000_000})
    stood = encode(record, time.time())
    assert (stood.taken_bytes, stood.now_bytes) == (2_000_000, 1_000_000)


def test_memory_of_a_gpu_is_told_above_what_others_use(record: RunRecord) -> None:
    record.begin("encode")
    for device, peak in ((2_000_000, 2_000_000), (9_000_000, 9_000_000), (5_000_000, 9_000_000)):
        seen = {"seconds": 1.0, "host_bytes": 0, "device_bytes": device}
        record.memory("encode", {**seen, "peak_host_bytes": 0, "peak_device_bytes": peak})
    stood = encode(record, time.time())
    assert (stood.taken_bytes, stood.now_bytes) == (7_000_000, 3_000_000)
    outcome = StageOutcome(name="encode", peak_device_bytes=9_000_000, baseline_before_bytes=1)
    record.add(outcome, attention="", precision={})
    stood = encode(record, time.time())
    assert (stood.taken_bytes, stood.now_bytes) == (8_999_999, 0)


def test_a_peak_stands_beside_what_was_planned(record: RunRecord) -> None:
    """Both above what the stage's imports take."""
    planned = {"rung": {"stage": "encode"}, "peak_bytes": 90_000_000}
    record.value["plan"]["memory"] = {"stages": [planned]}
    outcome = StageOutcome(name="encode", items=1, seconds=10.0, peak_host_bytes=480_000_000)
    outcome.notes["loaded_bytes"] = 400_000_000
    record.add(outcome, attention="sdpa", precision={})
    stood = encode(record, time.time())
    assert (stood.taken_bytes, stood.planned_bytes) == (80_000_000, 90_000_000)
    assert cells(stood)[-1] == "480.0 MB host (80.0 MB of 90.0 MB planned)"
    over = replace(stood, taken_bytes=95_000_000)
    assert cells(over)[-1] == "480.0 MB host (95.0 MB, over the 90.0 MB planned)"


def test_a_long_run_keeps_a_short_timeline_with_its_peaks(record: RunRecord) -> None:
    points = [[float(n), n % 1000, 0] for n in range(3 * TIMELINE_POINTS)]
    outcome = StageOutcome(name="encode", timeline=points, seconds=1.0)
    record.add(outcome, attention="", precision={})
    kept = record.stage("encode")["timeline"]
    assert TIMELINE_POINTS / 2 <= len(kept) <= TIMELINE_POINTS
    assert kept[0][0] == 0.0 and max(point[1] for point in kept) == 999
    assert coarser([[0, 1, 5], [1, 2, 3], [2, 7, 7]]) == [[0, 2, 5], [2, 7, 7]]


def status(record: RunRecord, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    record.write(force=True)
    assert main(["status", str(record.path.parent), *more]) == 0
    return capsys.readouterr().out


def test_failures_are_told_with_hints(
    record: RunRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    record.fails([failure(f"{n}.mp4", "frames") for n in range(30)])
    record.value["outputs"] = {"captions": "/out/captions.jsonl", "failures": "/out/f.jsonl"}
    told = status(record, capsys)
    assert "running for" in told and f"process {os.getpid()}" in told
    assert "/out/captions.jsonl" in told
    assert told.count("Mend it") == 20
    assert "… and 10 more in /out/f.jsonl" in told


def test_names_steer_no_terminal(record: RunRecord, capsys: pytest.CaptureFixture[str]) -> None:
    record.fails([failure("a\x1b[2Jb\n.mp4", "frames")])
    assert "failed: a?[2Jb?.mp4: broken" in status(record, capsys)


@pytest.mark.parametrize(
    ("state", "flow_run", "says"),
    [
        ("interrupted", None, "run the same command again"),
        ("running", {"id": "1234", "name": "quick-fox"}, "prefect flow-run retry 1234"),
        ("done", None, ""),
    ],
)
def test_what_to_do_about_a_run_that_ended_early(
    record: RunRecord,
    capsys: pytest.CaptureFixture[str],
    state: str,
    flow_run: dict[str, Any] | None,
    says: str,
) -> None:
    dead = 2**22 + 1  # above the largest process id there can be
    record.value.update(state=state, prefect=flow_run, pid=dead)
    told = status(record, capsys)
    assert says in told
    assert ("Finished work is kept" in told) == bool(says)
    assert ("quick-fox (1234)" in told) == bool(flow_run)
    assert json.loads(status(record, capsys, "--json"))["advice"] == advice(
        load_record(record.path.parent)
    )


def test_a_run_elsewhere_is_not_dead(record: RunRecord, capsys: pytest.CaptureFixture[str]) -> None:
    record.value.update(host="elsewhere", pid=2**22 + 1)
    assert "on elsewhere" in status(record, capsys)


def test_json_has_stages_as_they_are(record: RunRecord, capsys: pytest.CaptureFixture[str]) -> None:
    told = json.loads(status(record, capsys, "--json"))
    stage = next(stage for stage in told["stages"] if stage["name"] == "encode")
    assert (stage["done"], stage["pending"], stage["total"]) == (10, 90, 100)


def test_a_record_of_before_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stages = [{"name": "frames", "items": 3, "total": 3, "seconds": 2.0}]
    old = {"state": "done", "updated": "2026-01-01T00:00:00+00:00", "stages": stages, "plan": {}}
    (tmp_path / "run.json").write_text(json.dumps(old))
    assert main(["status", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("done ")
