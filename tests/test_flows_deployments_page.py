"""The page and the tables of Prefect's UI: what they say, that no name or caption gets out of its
cell, and that no medium costs more than its picture."""

import base64
import io
import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from PIL import Image

import penstock_demo
from artifacts.captions import Failure
from flows.console.lines import printable
from flows.deployments import page as prefect_page
from flows.deployments import runs
from flows.deployments.page import MAX_LETTERS as MAX_SHOWN
from flows.deployments.page import (
    SAMPLES,
    RunPage,
    _caption_text,
    _name,
    few_of,
    grid,
    listed,
    page,
    report_place,
    sample,
)
from flows.deployments.pictures import MOST_BYTES, SIDE, pictures_in, pictures_of
from flows.deployments.runs import MAX_LETTERS, named_after_work
from flows.deployments.view import TABLE_ROWS, plain, table
from flows.results.run_record import RunRecord

HOSTILE = [
    "<script>alert(1)</script>.mp4",
    "<img src=x onerror=alert(1)>",
    "a | b | c.mp4",
    r"a\|b\\|c\.mp4",
    "`code` ``more`` `.mp4",
    "[here](javascript:alert(1))",
    "![](http://evil/x.png)",
    "[a][b] [a]: http://evil",
    "<http://evil>",
    "**bold** _thin_ ~~gone~~ *a*",
    "# heading",
    "1. first",
    "- item",
    "> quoted",
    "a\nb\r\n\n# c\n| d | e |",
    "a\x00b\x1b[2J\x7f\u2028\u202e",
    "&lt;b&gt; &amp; &#60; a&b",
    "---",
    "trailing\\",
    "half \ud800 a character",
]
ALPHABET = "a1 |\\`*_~[]()<>!#&;:-+.\"'\n\t/="


def rendered(text: str) -> list[Token]:
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)


def read_in(tokens: list[Token]) -> str:
    """What is read in them, which must be text and nothing else."""
    children = [child for token in tokens for child in token.children or ()]
    assert {child.type for child in children} <= {"text", "text_special"}, children
    return "".join(child.content for child in children)


def cells_of(tokens: list[Token]) -> list[list[str]]:
    """The rows of a table, each cell as what is read in it."""
    rows: list[list[str]] = []
    for token in tokens:
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline":
            rows[-1].append(read_in([token]))
    return rows


def texts() -> list[str]:
    dice = random.Random(7)
    made = ["".join(dice.choices(ALPHABET, k=dice.randint(1, 24))) for _ in range(400)]
    return [*HOSTILE, *made]


def test_no_text_gets_out_of_its_cell() -> None:
    for text in texts():
        tokens = rendered(grid(("file", "what"), [(text, "x"), ("y", text)]))
        assert [t.type for t in tokens if t.level == 0] == ["table_open", "table_close"], text
        seen = printable(text).strip()
        assert cells_of(tokens) == [["file", "what"], [seen, "x"], ["y", seen]], text


def test_no_text_is_more_than_a_paragraph_where_a_table_s_cell_is_read_alone() -> None:
    for text in texts():
        tokens = rendered(plain(text))
        kinds = [t.type for t in tokens if t.level == 0]
        assert kinds in (["paragraph_open", "paragraph_close"], []), (text, kinds)
        assert read_in(tokens) == printable(text).strip()


def test_no_sample_gets_out_of_its_lines_which_wrap_as_a_table_s_cells_do_not() -> None:
    picture = b"\xff\xd8|![](x)"
    for text in texts():
        tokens = rendered(sample((text, text), picture))
        (shown,) = [c for t in tokens for c in t.children or () if c.type == "image"]
        assert str(shown.attrs["src"]).startswith("data:image/jpeg;base64,")
        seen = printable(text).strip()
        kinds = [t.type for t in tokens if t.type.endswith("_open")]
        assert kinds == ["paragraph_open", *["paragraph_open"] * bool(seen), "blockquote_open",
                         *["paragraph_open"] * bool(seen)], text  # fmt: skip
        for token in tokens:
            token.children = [c for c in token.children or () if c.type != "image"]
        assert read_in(tokens) == 2 * seen, text


def test_no_failure_gets_out_of_its_line() -> None:
    for text in texts():
        tokens = rendered("\n\n".join(listed("Failed", [(text, text)])))
        assert [t.type for t in tokens].count("list_item_open") == 1, text
        assert not {"fence", "html_block", "heading_open"} & {t.type for t in tokens}, text
        lines = [t for t in tokens if t.type == "inline"][1:]
        assert len(lines) == 1 and read_in(lines) == printable(f"{text}: {text}").strip()


def test_a_table_names_failures_and_what_to_do_and_says_what_it_leaves_out() -> None:
    odd = {"source": "", "stage": "frames", "error": "x", "message": "broken *\x1b", "hint": "c\r"}
    rows = table([Failure(media_path=f"{n}\x00\n.mp4", **odd) for n in range(TABLE_ROWS + 7)])
    assert rows[0] == {"file": "0??.mp4", "what": r"broken \*?", "what to do": "c?"}
    assert len(rows) == TABLE_ROWS + 1
    assert rows[-1]["file"] == "7 more"


def test_the_page_names_the_report_or_what_writes_one(record: RunRecord, tmp_path: Path) -> None:
    assert report_place(record.value) == {}
    record.value["outputs"] = {"failures": str(tmp_path / "my out" / "failures.jsonl")}
    written = f"penstock report '{tmp_path / 'my out'}'"
    assert report_place(record.value) == {"HTML report": written}
    (tmp_path / "my out").mkdir()
    (tmp_path / "my out" / "report.html").touch()
    there = str(tmp_path / "my out" / "report.html")
    assert report_place(record.value) == {"HTML report": there}


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    made = RunRecord(tmp_path)
    made.expect("encode", 100, 10)
    made.value["plan"] = {
        "model": "org/<b>odd</b>|model",
        "device": "cuda:0",
        "precision": {"vision": "bf16", "language": "nf4"},
        "batch_size": 8,
        "store": "/data/store",
        "halves": {"vision": {"bytes": 2_000_000_000, "attention": "sdpa"}},
    }
    made.value["outputs"] = {"captions": "/data/out/captions.jsonl"}
    for name, why in (("batch 4", "out of memory"), ("batch 2", "killed")):
        made.rung({"stage": "encode", "name": name, "reason": why, "error": "at 7 GiB"})
    peaks = {"peak_host_bytes": 3_000_000_000, "peak_device_bytes": 7_000_000_000}
    made.memory(
        "encode", {"device": "cpu", "seconds": 1.0, "host_bytes": 1, "device_bytes": 1, **peaks}
    )
    return made


def test_the_page_tells_plan_rung_peaks_failures_and_places(record: RunRecord) -> None:
    hint = "Convert | it"
    record.fail("frames", {"media_path": HOSTILE[0], "message": "broken", "hint": hint})
    tokens = rendered(page(record.value, 0.0))
    text = "".join(c.content for t in tokens for c in t.children or ())
    for line in (
        "org/<b>odd</b>|model on cuda:0, vision bf16, language nf4",
        "2.0 GB of weights",
        "encode runs with batch 2 (killed: at 7 GiB)",
        "3.0 GB host, 7.0 GB GPU",
        "/data/out/captions.jsonl",
        "/data/store",
        HOSTILE[0],
        "Convert | it",
    ):
        assert line in text, line
    assert [t.type for t in tokens].count("table_open") == 1
    assert not any(t.type == "html_block" for t in tokens)


def test_a_server_that_does_not_answer_costs_the_page_alone(
    record: RunRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("gone")

    monkeypatch.setattr(prefect_page, "create_markdown_artifact", refuse)
    shown = RunPage()
    shown.begin(None, record)  # type: ignore[arg-type]
    shown.end()
    assert record.value["prefect"] is not None


CLIP = penstock_demo.CLIPS / "clip-01.mp4"


@pytest.mark.parametrize("count", [0, 1, 2, SAMPLES, 1000])
def test_samples_are_the_first_the_last_and_some_between(count: int, tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_text("".join(f'{{"caption": {number}}}\n' for number in range(count)))
    shown = [row["caption"] for row in few_of(path)]
    assert len(shown) == min(count, SAMPLES) and shown == sorted(set(shown))
    assert not count or (shown[0], shown[-1]) == (0, count - 1)


def test_pictures_are_small_and_those_that_cannot_be_had_are_left_out(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (900, 1200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    (tmp_path / "bad.mp4").write_text("no video")
    odd = tmp_path / "of an odd name \udcff.png"
    Image.fromarray(noise[:40]).save(odd)
    media = [(tmp_path / "bad.mp4", 1.0), (tmp_path / "noise.png", None), (CLIP, 2.0), (odd, None)]
    pictures = pictures_of(dict(enumerate(media)))
    assert set(pictures) == {1, 2, 3}
    for picture in pictures.values():
        assert len(picture) <= MOST_BYTES
        assert max(Image.open(io.BytesIO(picture)).size) <= SIDE


def test_a_process_that_dies_costs_the_pictures_that_it_did_not_make() -> None:
    picture = base64.b64encode(b"jpeg").decode()
    line = json.dumps([0, picture]).encode() + b"\n"
    assert pictures_in(line + line[: len(line) // 2]) == {0: b"jpeg"}
    assert pictures_in(b"") == pictures_of({}) == {}


def test_what_is_said_is_short_and_names_the_moment() -> None:
    clip = {"media_path": "a.mp4", "start": 30.0, "end": 60.0, "caption": "x" * 9_999, "name": "s"}
    assert _name(clip) == "a.mp4, 30.0 to 60.0 s"
    assert _caption_text(clip) == "s: " + "x" * (MAX_SHOWN - 3) + "…"
    labels = [{"label": "cat", "passed": True}, {"label": "dog", "passed": False}]
    frame = {"media_path": "a.mp4", "time": 2.0, "labels": labels, "top": "cat"}
    assert (_name(frame), _caption_text(frame)) == ("a.mp4, 2.0 s", "cat")
    unlabelled = {**frame, "labels": labels[1:], "top": "dog"}
    assert _caption_text(unlabelled) == "no label (most like dog)"
    assert _name({**frame, "time": None}) == "a.mp4"


@pytest.mark.parametrize(
    ("out", "given", "name"),
    [
        ("/data/captions", "amber-otter", "caption into /data/captions"),
        ("/data/captions", "my own name", "my own name"),
        ("a\x00b\n", "amber-otter", "caption into a?b?"),
        ("/" + "x" * 500, "amber-otter", "…" + "x" * MAX_LETTERS),
        ("", "amber-otter", "amber-otter"),
    ],
)
def test_a_run_is_named_after_the_folder_that_it_writes_to(
    out: str, given: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for config in ({"out": out}, SimpleNamespace(out=out)):
        running = SimpleNamespace(
            name=given, flow_name="caption-videos", parameters={"config": config}
        )
        monkeypatch.setattr(runs, "flow_run", running)
        assert named_after_work() == name


def test_a_run_is_named_after_what_it_does_with_which_media(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = {"sources": ["demo/samples", "b.mp4"], "model": "demo"}
    parameters = {"config": config}
    running = SimpleNamespace(name="amber-otter", flow_name="label-images", parameters=parameters)
    monkeypatch.setattr(runs, "flow_run", running)
    assert named_after_work() == "label demo/samples, b.mp4 with demo"
    config = {"sources": ["a", "b", "c", "d"], "out": "/data/out"}
    running.parameters = {"config": config}
    assert named_after_work() == "label a, b and 2 more into /data/out"
    running.flow_name = "tune-captions"
    running.parameters = {"config": {"data": "captions.jsonl", "out": "style"}}
    assert named_after_work() == "tune captions.jsonl into style"
    running.flow_name = "learn-captions"
    running.parameters = {"config": {}, "caption": {"sources": ["a"], "out": "lora"}}
    assert named_after_work() == "learn a into lora"
    running.parameters = {}
    assert named_after_work() == "amber-otter"
