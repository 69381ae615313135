"""The journal of what people correct: nothing that was acknowledged is lost, nothing counts twice,
and what is undone is as if it had not been done."""

import json
import os
import random
import resource
import signal
from pathlib import Path
from typing import Any

import pytest

from artifacts.edits import EDITS, UNTOUCHED, Edit, EditJournal, EditsOf, key_of, read_edits
from artifacts.errors import EnvironmentFault

TIME = "2026-01-01T00:00:00+00:00"


def deed(name: str, **words: str | None) -> dict[str, Any]:
    """A deed that gives captions these words; None rejects one."""
    changes = [
        {"of": key, "caption": text, "review": "accepted" if text else "rejected"}
        for key, text in words.items()
    ]
    return {"id": name, "time": TIME, "does": "correct", "changes": changes}


def step(name: str, does: str) -> dict[str, Any]:
    return {"id": name, "time": TIME, "does": does}


def test_what_is_said_last_counts_and_can_be_undone_and_done_again(tmp_path: Path) -> None:
    journal = EditJournal(tmp_path)
    assert journal.add(deed("1", a="one", b=None)) == ["a", "b"]
    journal.add(deed("2", a="two"))
    assert journal.edits.now["a"] == Edit(caption="two", review="accepted")
    assert journal.add(step("3", "undo")) == ["a"]
    assert journal.edits.now["a"].caption == "one"
    assert journal.add(step("4", "undo")) == ["a", "b"] and not journal.edits.now
    assert journal.add(step("5", "undo")) == []
    journal.add(step("6", "redo"))
    journal.add(deed("7", b="three"))
    assert journal.add(step("8", "redo")) == [], "after something new there is nothing to redo"
    journal.close()
    assert {key: edit.caption for key, edit in read_edits(tmp_path).now.items()} == {
        "a": "one",
        "b": "three",
    }


def test_a_deed_that_is_sent_twice_counts_once(tmp_path: Path) -> None:
    journal = EditJournal(tmp_path)
    journal.add(deed("1", a="one"))
    size = journal.path.stat().st_size
    assert journal.add(deed("1", a="one")) == [] and journal.path.stat().st_size == size
    journal.add(step("2", "undo"))
    journal.close()
    again = EditJournal(tmp_path)
    assert again.add(step("2", "undo")) == [] and not again.edits.now
    again.close()


def test_any_deeds_give_what_a_plain_list_of_them_gives(tmp_path: Path) -> None:
    chance = random.Random(7)
    journal = EditJournal(tmp_path)
    done: list[dict[str, Any]] = []
    undone: list[dict[str, Any]] = []
    for number in range(400):
        does = chance.choice(["correct", "correct", "undo", "redo"])
        if does == "correct":
            made = deed(str(number), **{chance.choice("abcde"): f"words {number}"})
            done.append(made)
            undone.clear()
        else:
            made = step(str(number), does)
            start, end = (done, undone) if does == "undo" else (undone, done)
            end += [start.pop()] if start else []
        journal.add(made)
    journal.close()
    wanted = {c["of"]: c["caption"] for each in done for c in each["changes"]}
    found = read_edits(tmp_path)
    assert {key: edit.caption for key, edit in found.now.items()} == wanted
    assert [each["id"] for each in found.done] == [each["id"] for each in done]


def test_a_line_that_a_crash_tore_is_cut_off_and_no_other(tmp_path: Path) -> None:
    journal = EditJournal(tmp_path)
    for number in range(5):
        journal.add(deed(str(number), **{f"k{number}": "words"}))
    journal.close()
    whole = (tmp_path / EDITS).read_bytes()
    lines = whole.splitlines(keepends=True)
    for cut in range(len(whole) - len(lines[-1]), len(whole)):
        (tmp_path / EDITS).write_bytes(whole[:cut])
        assert len(read_edits(tmp_path).now) == 4
        again = EditJournal(tmp_path)
        again.add(deed("9", z="more"))
        again.close()
        assert [*read_edits(tmp_path).now] == ["k0", "k1", "k2", "k3", "z"]


def test_a_line_that_is_none_is_named_and_nothing_is_guessed(tmp_path: Path) -> None:
    (tmp_path / EDITS).write_text(json.dumps(deed("1", a="x")) + '\n{"id": 3}\n')
    for read in (read_edits, EditJournal):
        with pytest.raises(EnvironmentFault, match=r"edits.jsonl at line 2"):
            read(tmp_path)


def test_two_do_not_write_at_once(tmp_path: Path) -> None:
    first = EditJournal(tmp_path)
    with pytest.raises(EnvironmentFault, match="open in another review"):
        EditJournal(tmp_path)
    first.close()
    EditJournal(tmp_path).close()


def test_a_disk_that_is_full_costs_that_deed_alone(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = _fills(tmp_path)
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [*read_edits(tmp_path).now] == ["a", "c"]


def _fills(folder: Path) -> int:
    """Write until no more may be written, and then once more where it may."""
    journal = EditJournal(folder)
    journal.add(deed("1", a="one"))
    size = journal.path.stat().st_size
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, most))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        journal.add(deed("2", b="two"))
    except EnvironmentFault:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        journal.add(deed("3", c="three"))
        return 0
    return 2


def test_readers_see_what_was_added(tmp_path: Path) -> None:
    edits = EditsOf(tmp_path)
    assert edits().of("f", "", "p", "said") is UNTOUCHED
    journal = EditJournal(tmp_path)
    journal.add(deed("1", **{key_of("f", "", "p", "said"): "better"}))
    assert edits().of("f", "", "p", "said").caption == "better"
    assert edits().of("f", "", "p", "said otherwise") is UNTOUCHED
    journal.close()
