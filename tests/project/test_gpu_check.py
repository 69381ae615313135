"""The check of a GPU: rows, tables, exit statuses, and what becomes of a check that dies; and the
whole of it on a stand-in."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from flows.core.job.plan_record import MemoryPlan, PlannedStage
from flows.outputs.record.run_record import RunRecord
from flows.outputs.record.stage_record import StageRecord
from scripts.prove.gpu_check import __main__ as command
from scripts.prove.gpu_check import child, first
from scripts.prove.gpu_check.child import LOOK, Check
from scripts.prove.gpu_check.first import LIMIT_SECONDS, PARTS, Part, first_rows
from scripts.prove.gpu_check.rows import BEGIN, END, Result, Row, Setting, markdown, put, row, write
from scripts.prove.gpu_check.whole import alike, peaks

MIB = 1 << 20
GOOD = row("context", "250-600 MiB", "400 MiB", True)
BAD = row("SDPA", "below 100 MiB", "2,048 MiB", False)


def result(*rows: Row) -> Result:
    return Result(
        card="Card X, driver 1", date="2026-01-01", models=("demo",), rows=rows, seconds=61.0
    )


def test_the_page_is_rewritten_between_its_marks_alone() -> None:
    before = f"head\n{BEGIN}old\n{END}\nfoot\n"
    after = put(put(before, "once\n"), markdown(result(GOOD)))
    assert after.startswith("head\n") and after.endswith(f"{END}\nfoot\n")
    assert "Card X, driver 1" in after and "once" not in after and "old" not in after


def test_a_folder_gets_the_table_and_the_same_as_json(tmp_path: Path) -> None:
    write(result(GOOD, BAD), tmp_path / "new")
    values = json.loads((tmp_path / "new" / "gpu.json").read_text())
    assert [each["verdict"] for each in values["rows"]] == ["ok", "differs"]
    assert (
        "| SDPA | below 100 MiB | 2,048 MiB | differs |"
        in (tmp_path / "new" / "gpu.md").read_text()
    )


def test_without_a_gpu_one_line_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert command.main([]) == 2
    printed, words = capsys.readouterr(), "the driver shows no GPU, so there is nothing to check"
    assert (printed.out, printed.err) == ("", f"gpu-check: {words}\n")


def test_a_word_that_names_no_check_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--only", "nosuchcheck"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("gpu-check: no check is named nosuchcheck; ") and "windows" in printed


def test_of_a_stand_in_no_page_is_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "device_name", lambda: "cuda:0")
    monkeypatch.setenv("FAKE_GPU", "/nowhere")
    assert command.main([]) == 2
    assert "--out" in capsys.readouterr().err


def test_a_check_that_needs_what_is_lacking_is_skipped_with_the_reason(tmp_path: Path) -> None:
    check = Check("any", LOOK.rows, needs=("device",))
    setting, until = Setting(folder=tmp_path), time.monotonic() + 60.0
    (found,) = child.made([check], setting, {"device"}, until)
    assert found.verdict == "skipped" and "tensors do not lie" in found.found
    (late,) = child.made([check], setting, set(), time.monotonic())
    assert late.verdict == "skipped" and "--minutes" in late.found


STUB = """
import os, signal, sys, time
from pathlib import Path
import scripts.prove.gpu_check.child as child
from scripts.prove.gpu_check.child import Check
from scripts.prove.gpu_check.rows import row

def rows(setting):
    yield row("first", "a", "a", True)
    {ends}
    yield row("second", "b", "b", True)

def other(setting):
    yield row("other", "c", str(os.getpid()), True, pid=os.getpid())

child.named = lambda name: Check(name, rows if name == "dies" else other)
sys.exit(child.main(*sys.argv[1:]))
"""


def put_stub(tmp_path: Path, patch: pytest.MonkeyPatch, ends: str) -> None:
    """Have checks run by a process that ends so in one of them."""
    stub = tmp_path / "stub.py"
    stub.write_text(STUB.format(ends=ends))
    patch.setattr(child, "COMMAND", (sys.executable, str(stub)))


def made_of(tmp_path: Path, patch: pytest.MonkeyPatch, ends: str, seconds: float) -> list[Row]:
    """Rows of two checks before, one that ends so, and one after it, which share a process."""
    put_stub(tmp_path, patch, ends)
    names = ("before", "also before", "dies", "after")
    checks = [Check(name, lambda setting: iter(()), seconds) for name in names]
    return list(child.rows_of(checks, Setting(folder=tmp_path), time.monotonic() + 60.0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ends", "seconds", "words"),
    [
        ("raise ValueError('of two\\nlines')", 60.0, "ValueError: of two lines"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", 60.0, "signal 11"),
        pytest.param("time.sleep(60)", 5.0, "no end after 5 s", marks=pytest.mark.slow),
    ],
)
def test_a_check_that_dies_costs_one_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str, seconds: float, words: str
) -> None:
    before, also, first, died, after = made_of(tmp_path, monkeypatch, ends, seconds)
    assert [before.found, first.name, after.name] == [also.found, "first", "other"]
    assert before.found != after.found, "a process that died made another check"
    assert died.verdict == "failed" and words in died.found and "\n" not in died.found
    assert after.figures == {"pid": int(after.found)}


ORDER = (
    "build", "steps bf16", "windows", "recorded tower", "steps fp16", "steps nf4", "captions",
    "decode beside encode", "streamed", "LoRA nf4",
)  # fmt: skip


def test_the_first_parts_have_an_order_and_limits_of_nine_minutes() -> None:
    assert tuple(part.name for part in PARTS) == ORDER
    assert sum(part.seconds for part in PARTS) <= 540 == LIMIT_SECONDS
    for part in PARTS:
        for name in part.checks:  # or the limit of a check would end it first
            assert part.seconds <= child.named(name).seconds, (part.name, name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ends", "seconds", "words"),
    [
        ("raise ValueError('of two\\nlines')", 60.0, "ValueError: of two lines"),
        pytest.param("time.sleep(60)", 8.0, "no end after 8 s", marks=pytest.mark.slow),
    ],
)
def test_each_first_part_has_a_process_and_a_limit_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str, seconds: float, words: str
) -> None:
    put_stub(tmp_path, monkeypatch, ends)
    monkeypatch.setattr(first, "named", lambda name: Check(name, lambda setting: iter(())))
    parts = [Part(name, seconds, (name,)) for name in ("before", "dies", "after")]
    lines: list[dict[str, Any]] = []
    seen = []
    for found in first_rows(Setting(folder=tmp_path), lines.append, parts):
        assert lines[-1]["name"] == found.name, "a row was not told at once"
        seen.append(found)
    before, told, died, after = seen
    assert before.figures["pid"] != after.figures["pid"]
    assert (told.name, died.verdict) == ("first", "failed") and words in died.found
    ended = [line["part"] for line in lines if "seconds" in line]
    assert ended == ["before", "dies", "after"]
    assert lines[0]["part"] == "before" and lines[0]["verdict"] == "ok"


def test_of_a_part_that_is_lacking_a_line_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacks = row("lacks", "", "device", True)
    check = Check("streamed", lambda setting: iter(()), needs=("device",))
    monkeypatch.setattr(
        child,
        "rows_of",
        lambda checks, *_: iter([lacks] if checks and checks[0].needs == () else []),
    )
    names = {"look": LOOK, "streamed": check}
    monkeypatch.setattr(first, "named", names.__getitem__)
    lines: list[dict[str, Any]] = []
    parts = [Part("build", 5, ("look",)), Part("streamed", 5, ("streamed",))]
    assert len(list(first_rows(Setting(folder=tmp_path), lines.append, parts))) == 1
    why = "tensors do not lie on the device here"
    assert {"part": "streamed", "name": "streamed", "skipped": why} in lines


def record() -> RunRecord:
    """Of a run whose stages took 500 MiB each."""
    planned = [
        PlannedStage(stage=name, peak_bytes=peak * MIB, name="batch 8, bf16")
        for name, peak in (("encode", 510), ("decode", 600))
    ]
    taken: dict[str, Any] = {"peak_device_bytes": 800 * MIB, "baseline_before_bytes": 300 * MIB}
    stages = [StageRecord(name=stage.stage, **taken) for stage in planned]
    found = RunRecord.begun(Path("out"), [StageRecord(name="frames"), *stages])
    found.plan.memory = MemoryPlan(budget_bytes=600 * MIB, stages=planned)
    return found


def test_a_plan_is_held_against_what_was_taken() -> None:
    encode, decode = peaks(8, record())
    assert encode.verdict == "ok" and "+2.0%" in encode.found
    assert decode.verdict == "differs" and "+20.0%" in decode.found


def test_captions_are_counted_that_are_equal() -> None:
    one, other = {1: "a", 2: "b"}, {1: "a", 2: "c"}
    assert alike("captions", one, one).verdict == "ok"
    assert alike("captions", one, other).found == "1 of 2 equal"
    assert alike("captions", one, other, 0.5).verdict == "ok"
    assert alike("captions", {}, {}).verdict == "differs"
