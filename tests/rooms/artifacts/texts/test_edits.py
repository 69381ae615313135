"""The journal of what people correct, and what a store remembers of it: nothing lost, nor twice."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import EnvironmentFault
from artifacts.records.provenance import anybody, proof_by
from artifacts.records.store import local_folder
from artifacts.texts.edits import (
    CORRECTIONS,
    EDITS,
    TORN,
    UNTOUCHED,
    Action,
    CaptionChange,
    Edit,
    EditJournal,
    EditsInForce,
    StoredEdits,
    key_of,
    read_edits,
)

PLACE: dict[str, Any] = {"media_path": "a.mp4", "start": 0.0, "said": "x"}


def deed(name: str, second: int = 0, /, **words: str | None) -> Action:
    """A deed that gives captions these words; None rejects one."""
    changes = tuple(
        CaptionChange(of=key, **PLACE, caption=text, review="accepted" if text else "rejected")
        for key, text in words.items()
    )
    return replace(step(name, "correct", second), changes=changes)


def step(name: str, does: str, second: int = 0) -> Action:
    return Action(id=name, time=f"2026-01-01T00:00:{second:02}+00:00", does=does)


def run_with(folder: Path, *deeds: Action) -> Path:
    """A folder of a run in which these were done."""
    folder.mkdir(exist_ok=True)
    opened = EditJournal(folder)
    for each in deeds:
        opened.add(each)
    opened.close()
    return folder


def words_of(folder: Path) -> dict[str, str | None]:
    return {key: edit.caption for key, edit in read_edits(folder).now.items()}


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
    assert words_of(tmp_path) == {"a": "one", "b": "three"}


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
    done, undone, every = (list[Action]() for _ in range(3))
    for number in range(120):
        does = chance.choice(["correct", "correct", "undo", "redo"])
        if does == "correct":
            made = deed(str(number), **{chance.choice("abcde"): f"words {number}"})
            done.append(made)
            undone.clear()
        else:
            made = step(str(number), does)
            start, end = (done, undone) if does == "undo" else (undone, done)
            end += [start.pop()] if start else []
        every.append(made)
    run_with(tmp_path, *every)
    assert words_of(tmp_path) == {c.of: c.caption for each in done for c in each.changes}
    assert [each.id for each in read_edits(tmp_path).done] == [each.id for each in done]


@pytest.mark.slow
def test_a_line_that_a_crash_tore_is_cut_off_and_no_other(tmp_path: Path) -> None:
    run_with(tmp_path, *(deed(str(n), **{f"k{n}": "words"}) for n in range(5)))
    whole = (tmp_path / EDITS).read_bytes()
    lines = whole.splitlines(keepends=True)
    for cut in range(len(whole) - len(lines[-1]), len(whole), 5):
        (tmp_path / EDITS).write_bytes(whole[:cut])
        assert len(read_edits(tmp_path).now) == 4
        run_with(tmp_path, deed("9", z="more"))
        assert [*read_edits(tmp_path).now] == ["k0", "k1", "k2", "k3", "z"]


def test_a_line_that_is_none_is_named_and_nothing_is_guessed(tmp_path: Path) -> None:
    (tmp_path / EDITS).write_text(json.dumps(deed("1", a="x").to_json()) + '\n{"id": 3}\n')
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
    edits = EditsInForce(tmp_path, tmp_path / "store", anybody)
    assert edits().of("f", "", "p", "said") is UNTOUCHED
    run_with(tmp_path, deed("1", **{key_of("f", "", "p", "said"): "better"}))
    assert edits().of("f", "", "p", "said").caption == "better"
    assert edits().of("f", "", "p", "said otherwise") is UNTOUCHED
    assert edits().of("f", "short", "p", "said").caption == "better", "the prompt got a name"
    run_with(tmp_path, deed("2", **{key_of("f", "short", "p", "said"): "its own"}))
    assert edits().of("f", "short", "p", "said").caption == "its own"
    assert edits().of("f", "", "p", "said").caption == "better"


def taken_in(local: Path, *folders: Path) -> dict[str, str | None]:
    for folder in folders:
        StoredEdits(local).take_in(read_edits(folder))
    return {key: edit.caption for key, edit in StoredEdits(local)().items()}


def test_the_later_deed_wins_whenever_its_folder_was_opened(tmp_path: Path) -> None:
    late = run_with(tmp_path / "late", deed("1", 9, a="late"))
    early = run_with(tmp_path / "early", deed("1", 3, a="early", b="early"))
    assert taken_in(tmp_path, late, early, late) == {"a": "late", "b": "early"}
    assert len((tmp_path / CORRECTIONS).read_text().splitlines()) == 2


def test_an_undo_takes_back_its_own_folder_s_deed_and_no_other(tmp_path: Path) -> None:
    first = run_with(tmp_path / "first", deed("1", 1, a="first"))
    second = run_with(tmp_path / "second", deed("1", 2, a="second"))
    assert taken_in(tmp_path, first, second) == {"a": "second"}
    run_with(second, step("2", "undo", 3))
    assert taken_in(tmp_path, second) == {"a": "first"}
    run_with(second, step("3", "redo", 4))
    assert taken_in(tmp_path, first, second) == {"a": "second"}
    run_with(second, step("4", "undo"), step("5", "undo"), step("6", "redo"), step("7", "undo"))
    run_with(first, step("2", "undo", 5))
    assert taken_in(tmp_path, first, second) == {}


def test_a_folder_s_own_journal_wins_over_the_store(tmp_path: Path) -> None:
    own = run_with(tmp_path / "own", deed("1", 1, a="own"))
    assert taken_in(tmp_path, run_with(tmp_path / "other", deed("1", 9, a="other", b="other")))
    in_force = EditsInForce(own, tmp_path, anybody)
    assert {key: edit.caption for key, edit in in_force().now.items()} == {"a": "own", "b": "other"}
    assert in_force() is in_force(), "what did not change is not put together again"
    assert in_force.take_in() == 1 and in_force.take_in() == 0
    run_with(own, deed("2", a="again"))
    assert in_force().now["a"].caption == "again"
    (own / EDITS).unlink()
    assert in_force().now["a"].caption == "other"


def test_a_torn_or_damaged_line_costs_nothing_but_itself(tmp_path: Path) -> None:
    deeds = [deed(str(at), at, **{key: key}) for at, key in enumerate("abc", 1)]
    folder = run_with(tmp_path / "out", *deeds)
    taken_in(tmp_path, folder)
    lines = (tmp_path / CORRECTIONS).read_bytes().splitlines(keepends=True)
    (tmp_path / CORRECTIONS).write_bytes(b"\xff\x00{]\n" + lines[0] + b"[[[\n" + lines[1][:40])
    assert set(StoredEdits(tmp_path)()) == {"a"}
    assert taken_in(tmp_path, folder) == {"a": "a", "b": "b", "c": "c"}


def test_another_reader_sees_what_is_added_and_what_was_replaced(tmp_path: Path) -> None:
    stored = StoredEdits(tmp_path)
    assert stored() == {} and stored() is stored()
    taken_in(tmp_path, run_with(tmp_path / "out", deed("1", a="a")))
    assert stored() == {"a": Edit(caption="a", review="accepted")}
    (tmp_path / CORRECTIONS).unlink()
    assert stored() == {} and stored().get("a", UNTOUCHED) is UNTOUCHED


WRITER = """
import sys
from pathlib import Path
from artifacts.texts.edits import Action, CaptionChange, StoredEdits
name, local = sys.argv[1:]
for number in range(20):
    text = f"{name} {number} " + "x" * 20_000
    change = CaptionChange(
        of=f"{name} {number}", caption=text, review="", media_path="a.mp4", start=0.0, said="x"
    )
    action = Action(id=f"{name} {number}", time="2026-01-01", does="x", changes=(change,))
    StoredEdits(Path(local)).add([action])
"""


def test_several_write_at_once_and_no_line_is_lost(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER]
    running = [subprocess.Popen([*command, name, str(tmp_path)]) for name in "ab"]
    assert [each.wait(60) for each in running] == [0, 0]
    assert len(StoredEdits(tmp_path)()) == 40
    for line in (tmp_path / CORRECTIONS).read_text().splitlines():
        assert json.loads(line)["changes"]


def test_stores_are_told_apart_by_their_address_and_a_bucket_is_not_asked(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    assert local_folder(str(tmp_path / "store")) == tmp_path / "store"
    assert local_folder(str(tmp_path / "none")) is None and local_folder("ftp://x/y") is None
    found = [local_folder(url) for url in ("s3://one/x", "s3://other/x", "gs://one/x")]
    assert len({*found}) == 3 and None not in found


@pytest.mark.parametrize("name", [EDITS, TORN])
def test_a_journal_with_a_second_name_is_not_written(name: str, tmp_path: Path) -> None:
    """An archive can hold a hard link to any file of the user who unpacks it."""
    folder, other = tmp_path / "out", tmp_path / "profile"
    folder.mkdir()
    other.write_text("mine")
    (folder / EDITS).write_text("\ntorn")
    (folder / name).unlink(missing_ok=True)
    (folder / name).hardlink_to(other)
    with pytest.raises(EnvironmentFault, match="hard link"):
        EditJournal(folder)
    assert other.read_text() == "mine"


def test_an_edit_in_a_folder_of_another_person_is_not_noted(tmp_path: Path) -> None:
    journal = EditJournal(tmp_path, notes=False)
    journal.add(step("1", "correct"))
    journal.close()
    assert read_edits(tmp_path).ids == {"1"}
    assert read_edits(tmp_path, proof_by("")).unproved == 1
