"""What `penstock status` says of a run while it works and after, and what it and `penstock report`
tell of an export."""

import json
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from artifacts.disk.files import write_json
from artifacts.disk.json_records import typed
from artifacts.disk.json_shapes import Json
from artifacts.errors import CannotFit, Interrupted
from artifacts.texts.captions import Failure
from flows.commands.export.result import export_in
from flows.commands.report.facts import facts
from flows.core.job.plan_record import MemoryPlan, PlannedStage
from flows.core.pipelines import SUMMARY
from flows.execution.run import stopped_in_order
from flows.interfaces.cli.main import main
from flows.outputs.record.record_writer import RecordWriter
from flows.outputs.record.run_read import load_record
from flows.outputs.record.run_record import FlowRun, State
from flows.outputs.record.stage_record import TIMELINE_POINTS, coarser
from flows.outputs.run_status import StageStatus, advice, cells, seconds_left, stages_of
from stages.export.parity import PARITY, Figures, evaluate_parity
from stages.process.events import StageOutcome
from tests.support.browser import Browser
from tests.support.reports import captions_of, media_file, write_run


def failure(name: str) -> Failure:
    messages = {"error": "x", "message": "broken", "hint": "Mend it"}
    return Failure(media_path=name, source=name, stage="frames", **messages)


@pytest.fixture
def writer(tmp_path: Path) -> RecordWriter:
    made = RecordWriter(tmp_path)
    made.expect("encode", 100, 10)
    return made


def encode(writer: RecordWriter, now: float | None = None) -> StageStatus:
    return next(s for s in stages_of(writer.record, now or time.time()) if s.name == "encode")


def test_speed_is_told_of_the_last_minute_and_of_all(writer: RecordWriter) -> None:
    writer.begin("encode")
    assert encode(writer, time.time() + 30).seconds_left is None, "nothing is made yet"
    samples = [(1100.0, 10), (1150.0, 20), (1190.0, 40)]
    stage = writer.stage("encode")
    stage.since, stage.recent, stage.running = 1000.0, samples, 45
    stood = encode(writer, 1200.0)
    assert (stood.done, stood.pending, stood.running) == (55, 45, True)
    rates = (stood.rate, stood.rate_last_minute, stood.seconds_left)
    assert rates == pytest.approx((45 / 200, 25 / 50, 45 / 0.5))
    stage.recent, stage.running = [(1010.0, 5)], 5
    stood = encode(writer, 1200.0)
    assert stood.rate_last_minute == 0, "nothing for a minute"
    assert stood.seconds_left == pytest.approx(85 / (5 / 200))  # by all of it


def ran(writer: RecordWriter, name: str, items: int, seconds: float, total: int) -> None:
    """Record that an ended process of a stage has made some of its items."""
    stage = writer.stage(name)
    stage.items, stage.seconds, stage.total = items, seconds, total


def left(writer: RecordWriter, now: float) -> float | None:
    return seconds_left(writer.record, stages_of(writer.record, now))


def test_the_time_left_is_that_of_all_stages(writer: RecordWriter) -> None:
    assert left(writer, 1000.0) is None, "the chunks are not known yet"
    writer.record.plan.chunks = 100
    writer.record.plan.seconds = {"frames": 10.0, "encode": 50.0, "decode": None}
    ran(writer, "frames", 100, 8.0, 100)
    ran(writer, "encode", 40, 20.0, 100)
    writer.stage("encode").before = 0
    writer.stage("decode").total = 100
    assert left(writer, 1000.0) is None, "nobody knows how fast captions are made"
    writer.record.plan.seconds["decode"] = 70.0
    assert left(writer, 1000.0) == pytest.approx(60 / (40 / 20) + 70)
    ran(writer, "decode", 20, 40.0, 100)
    assert left(writer, 1000.0) == pytest.approx(60 / 2 + 80 / (20 / 40))


def test_stages_at_the_same_time_count_once_and_by_the_longest(writer: RecordWriter) -> None:
    writer.record.plan.chunks = 100
    ran(writer, "frames", 100, 8.0, 100)
    for name, rate in (("encode", 2), ("decode", 1)):
        stage = writer.stage(name)
        stage.total, stage.before, stage.since = 100, 0, 900.0
        stage.running, stage.recent = 50 * rate // 2, [(990.0, 50 * rate // 2 - 10 * rate)]
    assert left(writer, 1000.0) == pytest.approx(max(50 / 2, 75 / 1))
    writer.record.plan.seconds = {"decode": 300.0}
    decode = writer.stage("decode")
    decode.since, decode.running, decode.recent = 998.0, 25, [(998.0, 5)]
    assert left(writer, 1000.0) == pytest.approx(300), "the plan, until its rate is steady"
    writer.record.state = "interrupted"
    assert left(writer, 1000.0) is None


def test_files_not_looked_into_are_reckoned_with_by_their_headers(writer: RecordWriter) -> None:
    writer.record.plan.chunks = 500
    for unopened, found in ((7, (490, True)), (0, (90, False))):
        writer.record.media.open = unopened
        stood = encode(writer)
        assert (stood.pending, stood.about) == found


def test_only_what_depends_on_the_prompt_is_expected_once_per_prompt(tmp_path: Path) -> None:
    record = RecordWriter(tmp_path).record
    record.plan.chunks, record.plan.prompts, record.media.open = 500, 2, 7
    assert [s.pending for s in stages_of(record, time.time())] == [500, 500, 1000]


def test_texts_of_videos_are_not_reckoned_in_chunks(tmp_path: Path) -> None:
    made = RecordWriter(tmp_path, SUMMARY)
    made.record.plan.chunks, made.record.media.open = 500, 7
    frames, *_, last = stages_of(made.record, time.time())
    assert (frames.pending, last.pending, cells(last)[3]) == (500, 0, "-")
    made.expect("summarize", 12, 12)
    *_, last = stages_of(made.record, time.time())
    assert cells(last)[1:4] == ("12 chapters or summaries", "0", "0")


def test_what_the_model_refuses_is_not_pending(writer: RecordWriter) -> None:
    writer.fail("encode", {"media_path": "a.mp4", "message": "too narrow", "hint": "Widen it"})
    stood = encode(writer)
    assert (stood.failed, stood.pending) == (1, 89)


def test_outcomes_add_up_over_waves(writer: RecordWriter) -> None:
    for items in (20, 30):
        writer.begin("encode")
        for _ in range(items):
            writer.count_items("encode", 1)
        outcome = StageOutcome(name="encode", items=items, seconds=10.0, peak_host_bytes=items)
        writer.add(outcome, attention="sdpa", precision={})
    stood = encode(writer, time.time() + 999)
    assert (stood.done, stood.running, stood.seconds, stood.peak_host_bytes) == (60, False, 20, 30)
    assert stood.rate == pytest.approx(2.5)


def measured(
    writer: RecordWriter, host: int = 0, peak_host: int = 0, device: int = 0, peak_device: int = 0
) -> None:
    peaks = {"peak_host_bytes": peak_host, "peak_device_bytes": peak_device}
    now = {"seconds": 1.0, "host_bytes": host, "device_bytes": device}
    writer.memory("encode", {"device": "cuda:0", **now, **peaks})


def test_the_peak_is_told_while_a_stage_works(writer: RecordWriter) -> None:
    writer.begin("encode")
    for host in (5_000_000, 4_000_000):
        measured(writer, host=host, peak_host=host)
    stood = encode(writer)
    assert (stood.peak_host_bytes, stood.taken_bytes, stood.now_bytes) == (5_000_000, 0, 0)
    writer.imported("encode", {"loaded_bytes": 3_000_000})
    stood = encode(writer)
    assert (stood.taken_bytes, stood.now_bytes) == (2_000_000, 1_000_000)


def test_memory_of_a_gpu_is_told_above_what_others_use(writer: RecordWriter) -> None:
    writer.begin("encode")
    for device, peak in ((2_000_000, 2_000_000), (9_000_000, 9_000_000), (5_000_000, 9_000_000)):
        measured(writer, device=device, peak_device=peak)
    stood = encode(writer)
    assert (stood.taken_bytes, stood.now_bytes) == (7_000_000, 3_000_000)
    outcome = StageOutcome(name="encode", peak_device_bytes=9_000_000, baseline_before_bytes=1)
    writer.add(outcome, attention="", precision={})
    stood = encode(writer)
    assert (stood.taken_bytes, stood.now_bytes) == (8_999_999, 0)


def test_a_peak_stands_beside_what_was_planned(writer: RecordWriter) -> None:
    """Both above what the stage's imports take."""
    planned = PlannedStage(stage="encode", name="batch 4", peak_bytes=90_000_000)
    writer.record.plan.memory = MemoryPlan(stages=[planned])
    outcome = StageOutcome(name="encode", items=1, seconds=10.0, peak_host_bytes=480_000_000)
    outcome.notes["loaded_bytes"] = 400_000_000
    writer.add(outcome, attention="sdpa", precision={})
    stood = encode(writer)
    assert (stood.taken_bytes, stood.planned_bytes) == (80_000_000, 90_000_000)
    assert cells(stood)[-1] == "480.0 MB host (80.0 MB above its start, 90.0 MB planned)"
    over = replace(stood, taken_bytes=95_000_000)
    assert cells(over)[-1] == "480.0 MB host (95.0 MB above its start, over the 90.0 MB planned)"


def test_a_long_run_keeps_a_short_timeline_with_its_peaks(writer: RecordWriter) -> None:
    points = [[float(n), n % 1000, 0] for n in range(3 * TIMELINE_POINTS)]
    outcome = StageOutcome(name="encode", timeline=points, seconds=1.0)
    writer.add(outcome, attention="", precision={})
    kept = writer.stage("encode").timeline
    assert TIMELINE_POINTS / 2 <= len(kept) <= TIMELINE_POINTS
    assert kept[0][0] == 0.0 and max(point[1] for point in kept) == 999
    assert coarser([(0, 1, 5), (1, 2, 3), (2, 7, 7)]) == [(0, 2, 5), (2, 7, 7)]


Status = Callable[..., str]


@pytest.fixture
def status(capsys: pytest.CaptureFixture[str]) -> Status:
    """What the command prints of a record or a folder, with further options."""

    def printed(of: RecordWriter | Path, *more: str) -> str:
        if isinstance(of, RecordWriter):
            of.write(force=True)
            of = of.path.parent
        assert main(["status", str(of), *more]) == 0
        return capsys.readouterr().out

    return printed


def test_the_time_left_is_printed(writer: RecordWriter, status: Status) -> None:
    assert "left" not in status(writer).splitlines()[0]
    assert json.loads(status(writer, "--json"))["seconds_left"] is None
    writer.record.plan.chunks = 100
    for name in ("frames", "encode", "decode"):
        ran(writer, name, 50, 100.0, 100)
    writer.stage("encode").before = 0
    line = status(writer).splitlines()[0]
    assert re.match(r"running for [^,]+, about 5 min 00 s left, process \d+ on ", line)
    assert json.loads(status(writer, "--json"))["seconds_left"] == pytest.approx(300)


def test_failures_have_hints_and_names_steer_no_terminal(
    writer: RecordWriter, status: Status
) -> None:
    writer.fails([failure(name) for name in ("a\x1b[2Jb\n.mp4", *(f"{n}.mp4" for n in range(29)))])
    writer.record.outputs = {"captions": "/out/captions.jsonl", "failures": "/out/f.jsonl"}
    message = status(writer)
    for text in (
        *("running for", f"process {os.getpid()}", "/out/captions.jsonl"),
        *("failed: a?[2Jb?.mp4: broken", "… and 10 more in /out/f.jsonl"),
    ):
        assert text in message
    assert message.count("Mend it") == 20


@pytest.mark.parametrize(
    ("state", "flow_run", "says"),
    [
        ("interrupted", None, "run the same command again"),
        ("running", FlowRun(id="1234", name="quick-fox"), "prefect flow-run retry 1234"),
        ("done", None, ""),
    ],
)
def test_what_to_do_about_a_run_that_ended_early(
    writer: RecordWriter, status: Status, state: State, flow_run: FlowRun | None, says: str
) -> None:
    dead = 2**22 + 1  # above the largest process id there can be
    writer.record.state, writer.record.prefect, writer.record.pid = state, flow_run, dead
    message = status(writer)
    assert says in message
    assert ("Finished work is kept" in message) == bool(says)
    assert ("quick-fox (1234)" in message) == bool(flow_run)
    message = advice(load_record(writer.path.parent))
    assert json.loads(status(writer, "--json"))["advice"] == message


def test_a_run_that_does_not_fit_is_not_to_be_repeated(
    writer: RecordWriter, status: Status
) -> None:
    hint = "Give --max-store 48MiB or more"
    with pytest.raises(CannotFit), writer.recording_end():
        raise CannotFit("--max-store 32 MB is too small", hint=hint)
    text = status(writer)
    assert text.splitlines()[0].endswith(" ago: --max-store 32 MB is too small")
    assert text.count(hint) == 1 and "same command" not in text
    assert json.loads(status(writer, "--json"))["advice"] == hint


def test_an_interrupted_run_says_once_how_to_continue(writer: RecordWriter, status: Status) -> None:
    with pytest.raises(Interrupted) as stopped, stopped_in_order():
        raise KeyboardInterrupt
    writer.record.state, writer.record.error = "interrupted", str(stopped.value)
    assert status(writer).count("run the same command again") == 1


def test_a_run_elsewhere_lives_and_json_has_its_stages(
    writer: RecordWriter, status: Status
) -> None:
    writer.record.host, writer.record.pid = "elsewhere", 2**22 + 1
    assert "on elsewhere" in status(writer)
    stages = json.loads(status(writer, "--json"))["stages"]
    stage = next(stage for stage in stages if stage["name"] == "encode")
    assert (stage["done"], stage["pending"], stage["total"]) == (10, 90, 100)


TEXT: dict[str, Any] = {
    "by_caption": {"c" * 64: 0.004, "a" * 64: 0.0005, "b" * 64: 0.0015},
    "captions_as_native": 0.5,
} | {"captions": 3, "tokens": 60, "token_agreement": 0.999, "divergence": 0.002}
FEATURES: dict[str, Any] = {
    "by_chunk": {"d" * 64: 0.99, "e" * 64: 0.996},
    "neighbours": 0.97,
} | {"rows": 700, "chunks": 2, "cosine": 0.9999, "centred_mean": 0.993, "centred_least": 0.9}
MISSED = "lowest centred cosine of features 0.9"
RECIPE: Mapping[str, Json] = {
    "kind": "nf4",
    "parts": ["vision", "language"],
    "group": 0,
    "source": ["x"],
}
EVIL = "</script><script>document.title='run'</script>"


def verdict(folder: Path, figures: dict[str, Any], frames: int = 80, **more: Any) -> None:
    """Write a verdict as an export does."""
    measured = typed(Figures, figures)
    write_json(folder / PARITY, {**evaluate_parity(measured, frames, RECIPE).to_json(), **more})


def runs(out: Path) -> None:
    """Leave what the runs leave that a checkpoint is judged by."""
    film = media_file(out.parent / "film.mp4")
    native = write_run(out / "parity" / "native", [(film, captions_of(film, ["a red circle"]))])
    write_run(out / "parity" / "exported", [])
    os.utime(native.path, (1, 1))


def test_a_report_shows_figures_beside_bounds_and_captions_of_the_original(tmp_path: Path) -> None:
    out = tmp_path / "out"
    runs(out)
    verdict(out / "rejected", {"features": FEATURES, "text": TEXT})
    found = facts(out, out)
    assert found["name"] == "out"
    assert [medium["name"] for medium in found["media"]] == ["film.mp4"]
    assert ("written as", "nf4 of vision, language") in found["about"]
    parity = found["parity"]
    assert not parity["passed"] and "rejected: lowest centred" in parity["verdict"]
    marks = {name: (value, bound, mark) for name, value, bound, mark in parity["rows"]}
    assert marks["lowest centred cosine of features"] == ("0.9", "≥ 0.95", "✕")
    assert marks["Kullback-Leibler divergence in nats per token"] == ("0.002", "≤ 0.005", "✓")
    assert marks["frames compared"] == ("80", "≥ 64", "✓")
    divergence, cosine = parity["plots"]
    assert [key[0] for key, _ in divergence["values"]] == ["a", "b", "c"]
    assert [value for _, value in cosine["values"]] == [0.99, 0.996]
    assert [line[1] for line in divergence["lines"]] == [0.002, 0.005]
    assert [line[1] for line in cosine["lines"]] == [0.993, 0.99]


def test_the_report_lies_in_the_folder_of_the_export_and_its_words_stay_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs(tmp_path)
    verdict(tmp_path / "rejected", {"text": TEXT}, passed=False, missed=[EVIL])
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'report.html'}\n"
    page = (tmp_path / "report.html").read_text()
    assert EVIL not in page and page.count("<script") == 2
    held = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert held is not None and EVIL in json.loads(held[1])["parity"]["verdict"]


@pytest.mark.parametrize(
    ("place", "figures", "line"),
    [
        (".", {"text": TEXT}, "passed: 99.90% of 60 tokens as the original"),
        (".", {"features": FEATURES}, f"accepted without passing: {MISSED}"),
        ("rejected", {"features": FEATURES}, f"rejected: {MISSED}"),
        ("", {}, "the checkpoint is not evaluated yet"),
    ],
)
def test_status_says_first_what_became_of_the_checkpoint(
    place: str, figures: dict[str, Any], line: str, tmp_path: Path, status: Status
) -> None:
    runs(tmp_path)
    if place:
        verdict(tmp_path / place, figures)
    first, second, third, *_ = status(tmp_path).splitlines()
    assert first.startswith(line) and third.startswith("done ")
    assert second == f"last run, into {tmp_path / 'parity' / 'exported'}:"
    if place == "rejected":
        assert status(tmp_path / "rejected").startswith(line)
    values = json.loads(status(tmp_path, "--json"))
    assert values["checkpoint"]["verdict"].startswith(line)
    assert values["checkpoint"]["placed"] == (place == ".")
    assert values["state"] == "done"


def test_a_checkpoint_without_its_runs_tells_its_verdict_and_has_no_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], status: Status
) -> None:
    verdict(tmp_path, {"text": TEXT})
    assert status(tmp_path).startswith("passed: ")
    assert json.loads(status(tmp_path, "--json"))["checkpoint"]["parity"]["passed"]
    assert main(["report", str(tmp_path)]) == 2
    said_once = capsys.readouterr().err
    assert "no record of the runs" in said_once and said_once.count("\n") == 1


GOOD: dict[str, Any] = {"recipe": {}, "frames": 3, "gates": {}, "passed": True, "missed": []}


@pytest.mark.parametrize(
    "content",
    [
        *("{", "[]", "{}"),
        json.dumps({**GOOD, "gates": {"text.divergence": 1}}),
        json.dumps({**GOOD, "passed": 1}),
        json.dumps({**GOOD, "frames": float("nan")}),
        json.dumps({**GOOD, "text": {**TEXT, "by_caption": [1, 2]}}),
    ],
)
def test_a_damaged_verdict_is_named_in_one_line(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs(tmp_path)
    (tmp_path / PARITY).write_text(content)
    for command in ("report", "status"):
        assert main([command, str(tmp_path)]) == 5
        printed = capsys.readouterr().err
        assert f"{tmp_path / PARITY} cannot be read" in printed and printed.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


def test_a_folder_of_a_run_is_no_export_even_with_a_verdict_in_it(tmp_path: Path) -> None:
    write_run(tmp_path, [])
    verdict(tmp_path, {"text": TEXT})
    assert export_in(tmp_path) is None
    assert "parity" not in facts(tmp_path, tmp_path)
    assert export_in(tmp_path / "nothing") is None


@pytest.mark.slow
@pytest.mark.browser
def test_the_page_draws_dots_of_captions_and_the_bounds(browser: Browser, tmp_path: Path) -> None:
    runs(tmp_path)
    verdict(tmp_path / "rejected", {"features": FEATURES, "text": TEXT}, missed=[EVIL])
    assert main(["report", str(tmp_path)]) == 0
    browser.narrow(400)
    browser.open((tmp_path / "report.html").as_uri())
    browser.wait("return document.documentElement.dataset.ready")
    count = "return document.querySelectorAll('#parity ' + arguments[0]).length"
    assert browser.run(count, ".dot") == 5
    assert browser.run(count, ".rank .plot .budget") == 2
    dots = "document.querySelector('#parity .rank').querySelectorAll('.dot')"
    heights = browser.run(f"return [...{dots}].map(dot => dot.getBoundingClientRect().top)")
    assert heights == sorted(heights, reverse=True)  # the least is drawn lowest
    assert EVIL in browser.run("return document.querySelector('#parity p').textContent")
    over = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.run(over) == 0
    assert browser.console() == []
