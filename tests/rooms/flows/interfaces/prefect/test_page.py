"""The page of a run in Prefect's UI: what it says, and that no name gets out of its line."""

import random
from pathlib import Path
from types import SimpleNamespace

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from artifacts.texts.captions import Failure
from flows.core.console.lines import printable
from flows.interfaces.prefect import runs
from flows.interfaces.prefect.runs import MAX_LETTERS, named_after_work
from flows.interfaces.prefect.view import MAX_FAILURES, page, plain

HOSTILE = [
    *("<script>alert(1)</script>.mp4", "<img src=x onerror=alert(1)>", "a | b | c.mp4"),
    *(r"a\|b\\|c\.mp4", "`code` ``more`` `.mp4", "[here](javascript:alert(1))"),
    *("![](http://evil/x.png)", "[a][b] [a]: http://evil", "<http://evil>", "# heading"),
    *("**bold** _thin_ ~~gone~~ *a*", "1. first", "- item", "> quoted", "---", "trailing\\"),
    *("a\nb\r\n\n# c\n| d | e |", "a\x00b\x1b[2J\x7f\u2028\u202e", "&lt;b&gt; &amp; &#60; a&b"),
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


def texts() -> list[str]:
    dice = random.Random(7)
    made = ["".join(dice.choices(ALPHABET, k=dice.randint(1, 24))) for _ in range(400)]
    return [*HOSTILE, *made]


def test_no_text_is_more_than_a_paragraph() -> None:
    for text in texts():
        tokens = rendered(plain(text))
        kinds = [t.type for t in tokens if t.level == 0]
        assert kinds in (["paragraph_open", "paragraph_close"], []), (text, kinds)
        assert read_in(tokens) == printable(text).strip()


def failure(name: str, message: str = "x", hint: str = "y") -> Failure:
    place = {"media_path": name, "source": "", "stage": "frames"}
    return Failure(error="x", message=message, hint=hint, **place)


def test_no_failure_and_no_count_gets_out_of_its_line() -> None:
    for text in texts():
        tokens = rendered(page("done", {text: text}, [failure(text)]))
        assert [t.type for t in tokens].count("list_item_open") == 2, text
        assert not {"fence", "html_block", "heading_open"} & {t.type for t in tokens}, text
        first, count, _, line = [t for t in tokens if t.type == "inline"]
        assert read_in([first]) == "done"
        assert read_in([count]) == printable(f"{text}: {text}").strip()
        assert read_in([line]) == printable(f"{text}: x. y").strip()


def test_the_page_names_failures_and_says_what_it_leaves_out() -> None:
    many = [failure(f"{n}\x00\n.mp4", "broken *\x1b", "c\r") for n in range(MAX_FAILURES + 7)]
    lines = page("2 of 3 files", {"files": 3}, many).splitlines()
    assert lines[:5] == ["2 of 3 files", "", "- files: 3", "", "**Failed**"]
    assert lines[6] == r"- 0??.mp4: broken \*?. c?"
    assert len(lines) == 6 + MAX_FAILURES + 1 and lines[-1] == "- 7 more: Read failures.jsonl"


def test_the_page_names_the_report_or_what_writes_one(tmp_path: Path) -> None:
    out = tmp_path / "my out"
    assert f"HTML report: penstock report '{out}'\n" in page("done", {}, (), out)
    out.mkdir()
    (out / "report.html").touch()
    assert f"HTML report: {out / 'report.html'}\n" in page("done", {}, (), out)
    assert "report" not in page("done", {}, ())


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
    running = SimpleNamespace(name=given, flow_name="caption-videos")
    monkeypatch.setattr(runs, "flow_run", running)
    for config in ({"out": out}, SimpleNamespace(out=out)):
        running.parameters = {"config": config}
        assert named_after_work() == name


def test_a_run_is_named_after_what_it_does_with_what_media(monkeypatch: pytest.MonkeyPatch) -> None:
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
