"""What a store remembers of corrections: every deed of every folder once, the later over the
earlier, whatever is torn and whoever writes at the same time."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from artifacts.corrections import CORRECTIONS, EditsInForce, StoredEdits
from artifacts.edits import EDITS, UNTOUCHED, Edit, EditJournal, read_edits
from artifacts.store_folders import local_folder


def deed(name: str, second: int = 0, **words: str | None) -> dict[str, Any]:
    changes = [{"of": key, "caption": text, "review": ""} for key, text in words.items()]
    return {"id": name, "time": f"2026-01-01T00:00:{second:02}", "does": "x", "changes": changes}


def step(name: str, does: str, second: int = 0) -> dict[str, Any]:
    return {"id": name, "time": f"2026-01-01T00:00:{second:02}", "does": does}


def journal(folder: Path, *deeds: dict[str, Any]) -> Path:
    """A folder of a run in which these were done."""
    folder.mkdir(exist_ok=True)
    opened = EditJournal(folder)
    for each in deeds:
        opened.add(each)
    opened.close()
    return folder


def taken_in(local: Path, *folders: Path) -> dict[str, str | None]:
    for folder in folders:
        StoredEdits(local).take_in(read_edits(folder))
    return {key: edit.caption for key, edit in StoredEdits(local)().items()}


def test_the_later_deed_wins_whenever_its_folder_was_opened(tmp_path: Path) -> None:
    late = journal(tmp_path / "late", deed("1", 9, a="late"))
    early = journal(tmp_path / "early", deed("1", 3, a="early", b="early"))
    assert taken_in(tmp_path, late, early, late) == {"a": "late", "b": "early"}
    assert len((tmp_path / CORRECTIONS).read_text().splitlines()) == 2


def test_an_undo_takes_back_its_own_folder_s_deed_and_no_other(tmp_path: Path) -> None:
    first = journal(tmp_path / "first", deed("1", 1, a="first"))
    second = journal(tmp_path / "second", deed("1", 2, a="second"))
    assert taken_in(tmp_path, first, second) == {"a": "second"}
    journal(second, step("2", "undo", 3))
    assert taken_in(tmp_path, second) == {"a": "first"}
    journal(second, step("3", "redo", 4))
    assert taken_in(tmp_path, first, second) == {"a": "second"}
    journal(second, step("4", "undo"), step("5", "undo"), step("6", "redo"), step("7", "undo"))
    journal(first, step("2", "undo", 5))
    assert taken_in(tmp_path, first, second) == {}


def test_a_folder_s_own_journal_wins_over_the_store(tmp_path: Path) -> None:
    own = journal(tmp_path / "own", deed("1", 1, a="own"))
    assert taken_in(tmp_path, journal(tmp_path / "other", deed("1", 9, a="other", b="other")))
    in_force = EditsInForce(own, tmp_path)
    assert {key: edit.caption for key, edit in in_force().now.items()} == {"a": "own", "b": "other"}
    assert in_force() is in_force(), "what did not change is not put together again"
    assert in_force.take_in() == 1 and in_force.take_in() == 0
    journal(own, deed("2", a="again"))
    assert in_force().now["a"] == Edit(caption="again")
    (own / EDITS).unlink()
    assert in_force().now["a"] == Edit(caption="other")


def test_a_torn_or_damaged_line_costs_nothing_but_itself(tmp_path: Path) -> None:
    folder = journal(
        tmp_path / "out", deed("1", 1, a="a"), deed("2", 2, b="b"), deed("3", 3, c="c")
    )
    taken_in(tmp_path, folder)
    lines = (tmp_path / CORRECTIONS).read_bytes().splitlines(keepends=True)
    (tmp_path / CORRECTIONS).write_bytes(b"\xff\x00{]\n" + lines[0] + b"[[[\n" + lines[1][:40])
    assert set(StoredEdits(tmp_path)()) == {"a"}
    assert taken_in(tmp_path, folder) == {"a": "a", "b": "b", "c": "c"}


def test_another_reader_sees_what_is_added_and_what_was_replaced(tmp_path: Path) -> None:
    stored = StoredEdits(tmp_path)
    assert stored() == {} and stored() is stored()
    taken_in(tmp_path, journal(tmp_path / "out", deed("1", a="a")))
    assert stored() == {"a": Edit(caption="a")}
    (tmp_path / CORRECTIONS).unlink()
    assert stored() == {} and stored().get("a", UNTOUCHED) is UNTOUCHED


WRITER = """
import sys
from pathlib import Path
from artifacts.corrections import StoredEdits
name, local = sys.argv[1:]
for number in range(40):
    text = f"{name} {number} " + "x" * 20_000
    change = {"of": f"{name} {number}", "caption": text, "review": ""}
    StoredEdits(Path(local)).add([
        {"id": f"{name} {number}", "time": "2026-01-01", "does": "x", "changes": [change]}
    ])
"""


def test_several_write_at_once_and_no_line_is_lost(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER]
    running = [subprocess.Popen([*command, name, str(tmp_path)]) for name in "ab"]
    assert [each.wait(60) for each in running] == [0, 0]
    assert len(StoredEdits(tmp_path)()) == 80
    for line in (tmp_path / CORRECTIONS).read_text().splitlines():
        assert json.loads(line)["changes"]


def test_stores_are_told_apart_by_their_address_and_a_bucket_is_not_asked(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    assert local_folder(str(tmp_path / "store")) == tmp_path / "store"
    assert local_folder(str(tmp_path / "none")) is None and local_folder("ftp://x/y") is None
    found = [local_folder(url) for url in ("s3://one/x", "s3://other/x", "gs://one/x")]
    assert len({*found}) == 3 and None not in found
