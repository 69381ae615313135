"""What the report of a run says, and that nothing from users can leave its place in the page."""

import base64
import io
import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from artifacts.errors import EnvironmentFault
from artifacts.texts.captions import Failure
from flows.commands.report.facts import facts, page, timeline_of
from flows.commands.report.sections import SHEET
from flows.core.job.plan_record import MemoryPlan, PlannedStage, RungRecord
from flows.core.pages.document import as_json
from flows.interfaces.cli.main import main
from flows.outputs.media_rows import PageCaption
from flows.outputs.record.record_writer import RecordWriter
from flows.outputs.record.run_read import load_record
from flows.outputs.record.stage_record import SPANS
from stages.process.events import StageOutcome
from tests.support.reports import (
    GIB,
    PLAN,
    captions_of,
    curve,
    labelled,
    mac_folder,
    media_file,
    scored,
    started_ago,
    work,
    write_labels,
    write_run,
)

HOSTILE = '</script><script>alert(1)</script><!--<script>\u2028 "\\" \ud800 ]]>'


def written(out: Path) -> dict[str, Any]:
    """The data in the page."""
    assert main(["report", str(out)]) == 0
    text = (out / "report.html").read_text(encoding="utf-8")
    held = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert held
    found: dict[str, Any] = json.loads(held[1])
    return found


def test_data_cannot_leave_its_script_element() -> None:
    message = as_json({HOSTILE: [HOSTILE]})
    assert not set("<>&") & set(message)
    assert message.isascii()
    assert json.loads(message) == {HOSTILE: [HOSTILE]}


def test_the_page_fetches_nothing_and_runs_no_script_but_its_own() -> None:
    text = page({"name": HOSTILE})
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].split(";"))
    assert rules["default-src"] == "'none'"
    assert (rules["img-src"], rules["media-src"]) == ("file: 'self' data:", "file: 'self'")
    for kind in ("script-src", "style-src"):
        assert re.fullmatch(r"'sha256-[\w+/]{43}='", rules[kind])
    assert text.count("<script") == 2
    assert not re.search(r"""(?:src|href)=["']|https?://(?!www\.w3\.org/2000/svg)|@import""", text)


def test_the_report_goes_where_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "out", [])
    to = tmp_path / "else where" / "r.html"
    assert main(["report", str(tmp_path / "out"), "--to", str(to)]) == 0
    assert capsys.readouterr().out == f"{to}\n"
    assert to.is_file() and not (tmp_path / "out" / "report.html").exists()


def test_a_file_is_named_by_its_bytes_and_missed_when_it_is_gone(tmp_path: Path) -> None:
    names = [b"a b#1?%41.mp4", "é🎬.mp4".encode(), b"caf\xe9 <script>.mp4", b"gone.mp4", b"p:q.jpg"]
    (clips := tmp_path / "clips").mkdir()
    files = [media_file(clips / name.decode("utf-8", "surrogateescape")) for name in names]
    for file in files[:3] + files[4:]:
        file.path.touch()
    write_run(tmp_path / "out", [(file, captions_of(file, ["x"])) for file in files])
    media = written(tmp_path / "out")["media"]
    assert [m["url"].removeprefix("../clips/") for m in media] == [
        *("a%20b%231%3F%2541.mp4", "%C3%A9%F0%9F%8E%AC.mp4", "caf%E9%20%3Cscript%3E.mp4"),
        *("gone.mp4", "p%3Aq.jpg"),
    ]
    assert [bool(m["gone"]) for m in media] == [False, False, False, True, False]
    assert [m["kind"] for m in media] == ["video"] * 4 + ["image"]
    assert media[2]["path"].endswith("caf\N{REPLACEMENT CHARACTER} <script>.mp4")


def test_thumbnails_embedded_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "out", mac_folder(tmp_path / "photos"))
    every = [medium["small"] for medium in written(tmp_path / "out")["media"]]
    content = base64.b64decode(every[0].removeprefix("data:image/jpeg;base64,"))
    assert Image.open(io.BytesIO(content)).size == (240, 180) and len(set(map(len, every))) == 1
    monkeypatch.setattr("flows.outputs.thumbnails.EMBEDDED_BYTES", 2 * len(every[0]))
    media = written(tmp_path / "out")["media"]
    assert [medium["small"] for medium in media] == [*every[:2], ""]
    assert main(["report", str(tmp_path / "out")]) == 0


def test_two_files_of_one_name_and_source_keep_their_own_captions(tmp_path: Path) -> None:
    """As `penstock caption '*/cam.mp4'` finds them."""
    files = [media_file(tmp_path / folder / "cam.mp4", "*/cam.mp4") for folder in "abc"]
    texts = [["a one", "a two"], [], ["c one"]]
    write_run(tmp_path, [(f, captions_of(f, t)) for f, t in zip(files, texts, strict=True)])
    media = written(tmp_path)["media"]
    found = {Path(m["path"]).parent.name: [c[2] for c in m["captions"]] for m in media}
    assert found == dict(zip("abc", texts, strict=True))


def test_a_run_without_places_shows_its_captions(tmp_path: Path) -> None:
    (clips := tmp_path / "clips").mkdir()
    (clips / "a.mp4").touch()
    (picture := tmp_path / "one.jpg").touch()
    files = [media_file(clips / name, str(clips)) for name in ("a.mp4", "lost.mp4")]
    files.insert(1, media_file(picture, str(picture)))
    texts = {"video": ["x", "y"], "image": ["x"]}
    write_run(tmp_path, [(file, captions_of(file, texts[file.kind])) for file in files])
    (tmp_path / "media.jsonl").unlink()
    media = written(tmp_path)["media"]
    kinds = [("a.mp4", "video"), ("one.jpg", "image"), ("lost.mp4", "video")]
    assert [(m["name"], m["kind"]) for m in media] == kinds
    assert all(m["url"] is None and m["gone"] for m in media)
    assert [len(m["captions"]) for m in media] == [2, 1, 2]


def test_failures_come_with_hints_and_stages_with_their_figures(tmp_path: Path) -> None:
    failure = Failure(
        media_path="b<i>.mp4", source="c", stage="frames", error="no-video",
        message="no picture", hint="Convert it",
    )  # fmt: skip
    file = media_file(tmp_path / "a.mp4")
    writer = write_run(tmp_path, [(file, captions_of(file, ["x"]))], [failure])
    work(writer, "encode", 2.0, 10.0, curve(10, 100, 900 * 10**6), items=4, tokens=0)
    work(writer, "decode", 12.0, 5.0, curve(5, 100, 10**9), items=4, tokens=1234)
    summarized = {"summary": "all", "chapters": [{"start": 0.0, "end": 4.0, "text": "first"}]}
    row = {"media_path": "a.mp4", "source": "clips", "tokens": 5, **summarized}
    (tmp_path / "summaries.jsonl").write_text(json.dumps(row) + "\n")
    writer.record.summaries = 1
    started_ago(writer, 17.0)
    message = written(tmp_path)  # its caption has 7 tokens
    assert message["failures"][0]["hint"] == "Convert it"
    totals = {"tokens in these texts": "12", "files failed": "1", "peak host memory": "1.0 GB"}
    assert dict(message["totals"]).items() >= totals.items()
    shown = {"text": "all", "chapters": [[0.0, "first"]], "warnings": []}
    assert message["media"][0]["summary"] == shown
    about = dict(message["about"])
    assert about["model"] == "a/model-7b" and "torch" in about["versions"]
    assert about["prompt"] == "Describe." and message["media"][0]["prompt"] == ""
    table = message["stages"]
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    assert [(r["stage"], r["attention"], r["tokens generated"]) for r in rows] == [
        ("frames", "-", "-"), ("encode", "sdpa", "-"), ("decode", "sdpa", "1,234"),
    ]  # fmt: skip
    assert "time left" not in table["columns"] and message["plan"]["rows"] == []


def test_each_process_has_its_curve_where_it_worked(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path)
    writer.record.plan = replace(PLAN, memory=memory_plan())
    work(writer, "encode", 10.0, 4.0, curve(4, 100, 200))
    work(writer, "encode", 50.0, 2.0, curve(2, 100, 300), notes={"loaded_bytes": 1000})
    rung: dict[str, Any] = {"stage": "encode", "name": "batch 4", "reason": "killed", "error": ""}
    writer.record.rungs = [RungRecord(**rung, time=writer.record.started)]
    started_ago(writer, 60.0)
    line = timeline_of(load_record(tmp_path))
    encode = line["stages"][1]
    assert encode["spans"] == [[10.0, 14.0], [50.0, 52.0]]
    assert [[c[0][0], c[-1][0]] for c in encode["curves"]] == [[10.0, 13.5], [50.0, 51.5]]
    assert max(point[1] for point in encode["curves"][1]) == 300
    assert encode["planned"] == {"host": 1000 + 3 * GIB, "device": None}
    assert encode["budget"] == {"host": 1000 + 4 * GIB, "device": None}
    assert encode["rung"] == "batch 8, bf16"
    assert line["rungs"][0]["name"] == "batch 4" and 55 < line["seconds"] < 65


def test_the_plan_stands_beside_what_was_measured(tmp_path: Path) -> None:
    plan = replace(PLAN, memory=memory_plan(), seconds={"encode": 8.0})
    writer = write_run(tmp_path, [], plan=plan)
    timeline = [[0.0, 10**9, 0], [1.0, 10**9 + 2 * GIB, 0]]
    work(writer, "encode", 0.0, 2.0, timeline, notes={"loaded_bytes": 10**9})
    started_ago(writer, 3.0)
    message = written(tmp_path)
    (row,) = message["plan"]["rows"]
    columns = ["stage", "rung", "weights", "planned peak", "measured peak", "of the plan"]
    assert message["plan"]["columns"] == columns
    assert row == ["encode", "batch 8, bf16", "1.1 GB", "3.2 GB", "2.1 GB", "67%"]
    stages = message["stages"]
    assert stages["rows"][1][stages["columns"].index("planned time")] == "8.0 s"
    work(writer, "encode", 2.0, 2.0, [[0.0, 10**9 + 4 * GIB, 0]], notes={"loaded_bytes": 10**9})
    assert written(tmp_path)["plan"]["rows"][0][-1] == "133%, over it"


def memory_plan() -> MemoryPlan:
    planned = PlannedStage(
        stage="encode",
        name="batch 8, bf16",
        peak_bytes=3 * GIB,
        host_bytes=GIB,
        weight_bytes=GIB,
    )
    return MemoryPlan(budget_bytes=4 * GIB, budget_given=True, stages=[planned])


def test_on_a_gpu_the_budget_is_the_device_s(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path)
    writer.record.plan = replace(PLAN, device="cuda:0", memory=memory_plan())
    work(writer, "frames", 0.0, 2.0, curve(2, 100, 200))
    work(writer, "encode", 2.0, 4.0, curve(4, 100, 200, 500), baseline_before_bytes=7)
    frames, encode, _ = timeline_of(writer.record)["stages"]
    assert encode["planned"] == {"host": GIB, "device": 7 + 3 * GIB}
    assert encode["budget"] == {"host": None, "device": 7 + 4 * GIB}
    assert frames["budget"] == {"host": None, "device": None}


def test_a_run_at_work_and_one_that_died_are_shown_so_far(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path)
    writer.begin("frames")
    writer.stage("frames").since = time.time() - 30
    point = {"seconds": 4.0, "host_bytes": 5, "device_bytes": 0, "device": "cpu"}
    writer.memory("frames", {**point, "peak_host_bytes": 7, "peak_device_bytes": 0})
    started_ago(writer, 40.0)
    message = written(tmp_path)
    assert message["state"] == "running"
    frames = message["timeline"]["stages"][0]
    assert frames["spans"] == [pytest.approx([10.0, 40.0], abs=1.5)]
    assert frames["curves"] == [[[pytest.approx(14.0, abs=1.5), 5, 0]]]
    writer.record.pid = 2**22 + 1  # above the largest process id there can be
    writer.write(force=True)
    message = written(tmp_path)
    assert message["state"] == "died" and "again to continue" in message["advice"]
    assert message["timeline"]["stages"][0]["curves"]


def test_the_record_tells_when_each_process_worked(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path)
    for _ in range(2):
        writer.begin("encode")
        writer.add(StageOutcome(name="encode", seconds=2.0), attention="", precision={})
    (start, end, worked), (again, _, offset) = writer.stage("encode").spans
    assert 0 <= start <= end <= again and (worked, offset) == (0.0, 2.0)
    for timeline in ([[0.0, 5, 0], [2.03, 7, 0]], [[0.0, 6, 0]]):
        outcome = StageOutcome(name="decode", seconds=2.0, timeline=timeline)
        writer.add(outcome, attention="", precision={})
    curves = timeline_of(writer.record)["stages"][2]["curves"]
    assert [[point[1] for point in curve] for curve in curves] == [[5, 7], [6]]
    writer.stage("encode").spans = [(n, n + 1, 2.0 * n) for n in range(SPANS)]
    writer.add(StageOutcome(name="encode", seconds=2.0), attention="", precision={})
    spans = writer.stage("encode").spans
    assert len(spans) == (SPANS + 2) // 2
    assert spans[:2] == [(0, 2, 0.0), (2, 4, 4.0)]


def test_labels_boxes_and_counts_stand_beside_their_pictures(tmp_path: Path) -> None:
    """Two files of one name and source keep their own, as `penstock label '*/a.png'` finds them."""
    files = [media_file(tmp_path / folder / "a.png", "*/a.png") for folder in "xy"]
    both = labelled(files[0], scored("cat", 0.4, [1, 2, 30, 40]), scored("sky", 0.3))
    write_labels(tmp_path, [(files[0], [both]), (files[1], [labelled(files[1])])])
    found = facts(tmp_path, tmp_path)
    first, second = found["media"]
    assert (first["url"], second["url"]) == ("x/a.png", "y/a.png")
    assert first["labels"] == [["cat", 0.4, (1, 2, 30, 40)], ["sky", 0.3, None]]
    assert second["labels"] == [] and second["gone"]
    assert [one["label"] for one in found["labels"]["labels"]] == ["sky", "cat"]
    assert dict(found["totals"])["labelled images or frames"] == "2"
    assert "tokens in these texts" not in dict(found["totals"])


def test_a_video_has_a_line_for_each_stretch_with_the_same_labels(tmp_path: Path) -> None:
    film = media_file(tmp_path / "film.mp4")
    given = ["cat", "cat", "sky", "sky"]
    rows = [labelled(film, scored(name), time=float(at)) for at, name in enumerate(given)]
    write_labels(tmp_path, [(film, rows)])
    (medium,) = facts(tmp_path, tmp_path)["media"]
    assert medium["captions"] == [PageCaption(0.0, 2.0, "cat"), PageCaption(2.0, 4.0, "sky")]


def test_the_page_shows_the_first_of_very_many_and_reads_no_more(tmp_path: Path) -> None:
    files = [media_file(tmp_path / f"{at}.png") for at in range(SHEET + 9)]
    write_labels(tmp_path, [(file, [labelled(file, scored("cat"))]) for file in files])
    with (tmp_path / "labels.jsonl").open("a") as lines:
        lines.write("this is never looked at\n")
    assert len(facts(tmp_path, tmp_path)["media"]) == SHEET


def test_a_run_that_wrote_nothing_yet_has_a_report(tmp_path: Path) -> None:
    file = media_file(tmp_path / "a.png", str(tmp_path))
    file.path.touch()
    write_labels(tmp_path, [(file, [labelled(file, scored("cat"))])])
    (tmp_path / "media.jsonl").unlink()
    assert facts(tmp_path, tmp_path)["media"][0]["name"] == "a.png"
    for name in ("labels.jsonl", "label_report.json"):
        (tmp_path / name).unlink()
    found = facts(tmp_path, tmp_path)
    assert found["labels"] is None and found["media"] == []


def test_a_damaged_count_is_named(tmp_path: Path) -> None:
    write_labels(tmp_path, [])
    (tmp_path / "label_report.json").write_text('{"pictures": "many"}')
    with pytest.raises(EnvironmentFault, match=r"label_report\.json"):
        facts(tmp_path, tmp_path)


def test_a_run_that_captions_is_told_nothing_of_labels(tmp_path: Path) -> None:
    file = media_file(tmp_path / "a.png")
    write_labels(tmp_path, [(file, [labelled(file, scored("cat"))])])
    write_run(tmp_path, [])
    found = facts(tmp_path, tmp_path)
    assert found["labels"] is None and found["media"] == []
