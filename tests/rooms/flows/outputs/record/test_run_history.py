"""What `run.json` keeps of earlier runs into its folder, and how report and status sum it up."""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from artifacts.disk.files import write_json, write_text
from artifacts.disk.json_records import json_of
from artifacts.errors import EnvironmentFault, Interrupted, UsageError
from flows.commands.report.facts import facts
from flows.core.console.display import Display
from flows.core.options.commands import CaptionConfig
from flows.execution.run import caption
from flows.outputs.record.record_writer import RecordWriter
from flows.outputs.record.run_read import history_in, load_record
from flows.outputs.record.run_record import POINTS, RUNS, sum_of
from stages.process.events import StageOutcome
from tests.support.faults import failing
from tests.support.media import write_videos
from tests.support.reports import (
    captions_of,
    labelled,
    media_file,
    scored,
    status_of,
    write_labels,
    write_run,
)
from tests.support.stand_ins import Stages, config_in

KEY, OTHER = "a-1", "b-1"


def ran(out: Path, items: int, *keys: str, minute: int = 0, **outcome: Any) -> None:
    """A run of 40 seconds into a folder, in which encode made so many items."""
    writer = RecordWriter(out)
    started = f"2026-01-01T{minute // 60:02d}:{minute % 60:02d}:00+00:00"
    writer.record.started = started
    writer.carry_on(history_in(out), keys or (KEY,))
    if items:
        made = StageOutcome(name="encode", items=items, seconds=2.0, **outcome)
        writer.add(made, attention="", precision={})
        writer.stage("encode").spans = [(1.0, 3.0, 0.0)]
    writer.record.updated = started.replace(":00+", ":40+")
    writer.record.state = "died"  # a killed process writes no history of its own run
    write_json(writer.path, json_of(writer.record))


def test_a_folder_above_a_run_names_it_fails(tmp_path: Path) -> None:
    ran(tmp_path / "index" / "run", 12)  # as `index build` leaves it
    with pytest.raises(UsageError, match="no run has written to") as error:
        load_record(tmp_path / "index")
    assert f", such as {tmp_path / 'index' / 'run'};" in error.value.hint


def test_a_full_disk_hides_no_error_of_a_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = RecordWriter(tmp_path)
    monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC))
    writer.add(StageOutcome(name="encode", items=2), attention="", precision={})
    assert writer.stage("encode").items == 2
    with pytest.raises(EnvironmentFault):
        writer.finish("done")


def test_a_repeated_command_that_makes_nothing_leaves_the_figures_there(tmp_path: Path) -> None:
    timeline = [[at / 2, 10**8 + at, 0] for at in range(4)]
    ran(tmp_path, 12, tokens=340, peak_host_bytes=5 * 10**8, timeline=timeline)
    assert "runs" not in status_of(tmp_path)
    ran(tmp_path, 0, minute=5)
    (entry,) = load_record(tmp_path).current_runs()
    assert (entry.seconds, entry.tokens) == (40.0, 340)
    assert entry.items == {"frames": 0, "encode": 12, "decode": 0}
    message = "an earlier run: 40 s, made encode 12, at most 500.0 MB host; the table is of"
    assert message in status_of(tmp_path)
    found = facts(tmp_path, tmp_path)
    totals = dict(found["totals"])
    assert (totals["time"], dict(found["about"])["last run"]) == ("40 s", "40 s")
    assert totals["peak host memory"] == "500.0 MB"
    assert found["of_run"].startswith("2026-01-01 00:00:00") and found["runs"] is None
    (stage,) = found["timeline"]["stages"]
    assert stage["curves"] == [[(1.0 + at / 2, 10**8 + at, 0) for at in range(4)]]


def test_runs_that_made_something_stand_in_a_table_with_their_sum(tmp_path: Path) -> None:
    for minute, items in enumerate((5, 0, 7)):
        ran(tmp_path, items, minute=minute, peak_host_bytes=items * 10**6)
    assert "all 2 runs: 1 min 20 s, made encode 12, at most 7.0 MB host" in status_of(tmp_path)
    found = facts(tmp_path, tmp_path)
    assert found["runs"]["columns"] == ["started", "time", "made", "peak host memory"]
    assert [row[1:] for row in found["runs"]["rows"]] == [
        ["40 s", "encode 5", "5.0 MB"],
        ["40 s", "encode 7", "7.0 MB"],
        ["1 min 20 s", "encode 12", "7.0 MB"],
    ]
    assert found["of_run"] == "" and dict(found["totals"])["time of 2 runs"] == "1 min 20 s"


def test_another_prompt_or_model_neither_counts_nor_loses_the_work(tmp_path: Path) -> None:
    ran(tmp_path, 5)
    ran(tmp_path, 3, OTHER, minute=1)
    assert [entry.items["encode"] for entry in load_record(tmp_path).current_runs()] == [3]
    ran(tmp_path, 0, KEY, "c-1", minute=2)  # as after one more file
    assert [entry.items["encode"] for entry in load_record(tmp_path).current_runs()] == [5]


def test_a_copied_folder_does_not_count_the_work_of_the_original(tmp_path: Path) -> None:
    ran(tmp_path / "a", 5)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    ran(tmp_path / "b", 0, minute=1)
    assert load_record(tmp_path / "b").current_runs() == []


def test_old_runs_are_merged_and_a_long_timeline_keeps_its_peak(tmp_path: Path) -> None:
    points = [[float(at), 7 if at == 1234 else 1, 0] for at in range(5000)]
    for minute in range(RUNS + 5):
        ran(tmp_path, 1, minute=minute, tokens=2, timeline=points if minute == RUNS else [])
    entries = load_record(tmp_path).current_runs()
    assert len(entries) == RUNS and (entries[0].runs, entries[1].runs) == (6, 1)
    total, count = sum_of(entries), RUNS + 5
    assert total is not None
    assert [total.runs, total.seconds, total.tokens] == [count, 40.0 * count, 2 * count]
    (kept,) = (each.timeline["encode"] for each in entries if each.timeline)
    assert POINTS / 2 < len(kept) <= POINTS and max(point[1] for point in kept) == 7


def test_an_entry_without_points_of_memory_is_shown(tmp_path: Path) -> None:
    ran(tmp_path, 1)
    ran(tmp_path, 0, minute=1)
    record = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    record["history"][0]["timeline"] = {"encode": []}
    write_text(tmp_path / "run.json", [json.dumps(record)])
    assert facts(tmp_path, tmp_path)["timeline"]["stages"] == []


def test_a_damaged_record_is_no_reason_to_refuse_a_run(tmp_path: Path) -> None:
    write_text(tmp_path / "run.json", ["{"])
    assert history_in(tmp_path) == []


@pytest.fixture
def config(tmp_path: Path) -> CaptionConfig:
    """Two clips of a model whose stages are made up."""
    return config_in(tmp_path, write_videos(tmp_path / "clips", 2), batch_size=1)


def test_an_interrupted_run_and_its_continuation_are_summed_up(config: CaptionConfig) -> None:
    stages, out = Stages(), Path(config.out)
    stages.stop_after = {"encode": 1}
    with pytest.raises(Interrupted):
        caption(config, Display(quiet=True), stages.launcher)
    stages.stop_after = {}
    for _ in range(2):
        caption(config, Display(quiet=True), stages.launcher)
    record = load_record(out)
    assert [stage.items for stage in record.stages] == [0, 0, 0]
    total = sum_of(record.current_runs())
    assert total is not None and total.runs == 2
    assert total.items == {"frames": 2, "encode": 2, "decode": 2}
    caption(replace(config, prompt="What happens?"), Display(quiet=True), stages.launcher)
    total = sum_of(load_record(out).current_runs())
    assert total is not None and total.items == {"frames": 0, "encode": 0, "decode": 2}


def test_a_report_of_captions_shows_the_labels_below(tmp_path: Path) -> None:
    photo, film = media_file(tmp_path / "a.png"), media_file(tmp_path / "b.mp4")
    captioned = [(photo, captions_of(photo, ["a cat"])), (film, captions_of(film, ["a sky"]))]
    cat = scored("cat", 0.4)
    frames = [
        labelled(film, *shown, time=at) for at, shown in ((0.0, [cat]), (1.0, []), (2.0, [cat]))
    ]
    write_run(tmp_path / "out", captioned)
    assert facts(tmp_path / "out", tmp_path)["labels"] is None
    labels = [(photo, [labelled(photo, cat)]), (film, frames)]
    write_labels(tmp_path / "out" / "labels", labels)
    found = facts(tmp_path / "out", tmp_path)
    assert [one["label"] for one in found["labels"]["labels"]] == ["cat"] and found["captioned"]
    image, video = found["media"]
    assert (image["labels"], image["captions"][0][2]) == ([["cat", 0.4, None]], "a cat")
    assert (video["spans"], video["captions"][0][2]) == ([[0.0, "cat"], [2.0, "cat"]], "a sky")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda record: record.pop("pid"), "missing required field `pid`"),
        (lambda record: record.update(state="cooked"), "state: invalid enum value"),
        (lambda record: record.update(started="0001-01-01T00:00:00"), "year"),
        (lambda record: record["stages"][1]["notes"].update(loaded_bytes=None), "loaded_bytes"),
        (lambda record: record["stages"][0].update(name="cook"), "no stage is called 'cook'"),
        (lambda record: record.update(error="\ud800"), "error: expected Unicode text"),
        (lambda record: record.update(pid="\ud800"), "half a character"),
    ],
)
def test_a_record_that_somebody_changed_is_told_in_one_line(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], says: str
) -> None:
    ran(tmp_path, 1)
    record = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    change(record)
    write_text(tmp_path / "run.json", [json.dumps(record)])
    with pytest.raises(EnvironmentFault, match=re.escape(says)) as caught:
        load_record(tmp_path)
    assert "\n" not in caught.value.message and caught.value.hint == "Run the command again"
