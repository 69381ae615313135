"""The pages: every one is in the menu, and every command that they show can be typed."""

from pathlib import Path

import pytest

from docs.conf import NAVIGATION
from scripts.follow_docs import read
from scripts.shown.commands import ROOT, Shown, commands, inline, pages
from scripts.shown.parsing import wrong, wrong_inline
from scripts.shown.terminal import faults, run_on_terminal

PAGES = [*pages(), ROOT / "CHANGELOG.md"]


def test_every_page_is_in_the_menu_once() -> None:
    listed = [name for names in NAVIGATION.values() for name in names]
    there = [page.relative_to(ROOT).with_suffix("").as_posix() for page in PAGES]
    assert sorted(listed) == sorted(set(there) - {"docs/index"})


def test_the_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120 and len(text.split()) <= 900


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_shown_can_be_typed(page: Path) -> None:
    assert read(page).wrong == []


@pytest.mark.parametrize(
    "text",
    [
        "penstock caption VIDEOS/ --modle M",
        "penstock plan --for nothing",
        "penstock plan --model M --train full|lora|nothing",
        "penstock caption VIDEOS/ --format txt,pdf",
        "penstock convert SRC DST [--dtype fp16|fp64]",
        "penstock export MODEL --to nf4 --out DIR [--samples many]",
        "penstock cache ls && penstock cache sl",
        "make coffee",
        "make demo SUGAR=2",
        "python -m benchmarks.nothing",
        "python benchmarks/labels.py --no-such-option",
        "prefect deployment run 'caption-videos/never'",
    ],
)
def test_a_command_that_nobody_can_type_fails(text: str) -> None:
    assert wrong(Shown(page="a.md", line=1, text=text))


def test_a_command_in_a_sentence_with_an_option_that_there_is_not_fails() -> None:
    assert not wrong_inline(Shown(page="a.md", line=1, text="penstock plan --explain"))
    assert wrong_inline(Shown(page="a.md", line=1, text="penstock plan --excuse"))
    assert wrong_inline(Shown(page="a.md", line=1, text="penstock paln"))


PAGE = """# A page

    penstock caption VIDEOS/ \\
        --model M          # a comment, "quoted"
    export NAME="a # b"

    no command, but indented

```sh
cd VIDEOS
```
Some `penstock status OUT` in a sentence.

    $ penstock cache ls
    what it prints

```python
import penstock
```

```text
penstock is no command here
```
"""


def test_commands_are_found_where_people_type_them(tmp_path: Path) -> None:
    page = tmp_path / "a.md"
    page.write_text(PAGE)
    found = [(one.line, one.text, one.comment) for one in commands(page, tmp_path)]
    assert found == [
        (3, "penstock caption VIDEOS/ --model M", 'a comment, "quoted"'),
        (5, 'export NAME="a # b"', ""),
        (10, "cd VIDEOS", ""),
        (14, "penstock cache ls", ""),
        (18, "import penstock", ""),
    ]
    assert [one.text for one in inline(page, tmp_path)] == ["penstock status OUT"]


def test_a_command_is_run_on_a_terminal_of_80_columns(tmp_path: Path) -> None:
    env = {"PATH": "/usr/bin:/bin", "TERM": "xterm"}
    outcome = run_on_terminal("stty size; exit 3", tmp_path, env, seconds=60)
    assert (outcome.code, outcome.text.split()) == (3, ["24", "80"])


def test_ctrl_c_is_pressed_when_work_begins(tmp_path: Path) -> None:
    env = {"PATH": "/usr/bin:/bin"}
    script = "trap 'exit 4' INT; echo encoding; while :; do sleep 0.1; done"
    assert run_on_terminal(script, tmp_path, env, seconds=60, stopped=True).code == 4


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("a " * 40 + "\n", 0),
        ("a" * 78 + " word\r\n", 1),
        ("\x1b[32m" + "a" * 78 + " \x1b[0mb\n", 0),
        ("/" + "path" * 30 + "\n", 0),
        (" " * 15 + "/" + "path" * 18 + "\n", 0),
        ("Traceback (most recent call last):\n", 1),
    ],
)
def test_a_broken_word_and_a_traceback_are_faults(text: str, count: int) -> None:
    assert len(faults(text)) == count
