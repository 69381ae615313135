"""One output folder has one owner: the noted marker."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from artifacts.errors import Interrupted
from artifacts.records.provenance import NOTES, note, proof_by
from flows.outputs.marker import MARKER, Marker, own_marker, read_marker, write_marker, write_proved


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the user a state folder of its own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def marker(tmp_path: Path) -> Marker:
    (store := tmp_path / "store").mkdir()
    made = Marker(command="caption", words=("caption", os.fsdecode(b"\xff"), "ü"))
    return replace(made, folder="/films", store=str(store), outputs=("captions.jsonl",))


def test_a_folder_is_its_users_own_also_after_a_move(tmp_path: Path, marker: Marker) -> None:
    write_marker(tmp_path / "out", marker)
    write_proved(tmp_path / "out", {"media.jsonl": ["{}\n"]}, marker.store)
    found = own_marker((tmp_path / "out").rename(tmp_path / "moved"))
    assert found is not None and replace(found, digests=()) == marker and len(found.digests) == 1
    write_proved(tmp_path / "moved", {"media.jsonl": ["{}\n", "{}\n"]}, marker.store)
    assert own_marker(tmp_path / "moved") is not None


def test_a_named_store_proves_not_another_user(tmp_path: Path, marker: Marker, state: Path) -> None:
    out, store = tmp_path / "out", marker.store
    write_marker(out, marker)
    assert (state / "penstock" / NOTES).stat().st_mode & 0o777 == 0o600
    shutil.rmtree(state)  # another machine
    assert read_marker(out) == marker and own_marker(out) is None
    assert own_marker(out, store) == marker == own_marker(out, f"file://{store}")
    shutil.copytree(out, tmp_path / "copy")
    assert own_marker(tmp_path / "copy", store) == marker
    Path(store, NOTES).unlink()
    assert own_marker(out, store) is None


@pytest.mark.parametrize("name", ["command", "words", "folder", "store", "outputs", "digests"])
def test_whatever_a_marker_says_is_noted(tmp_path: Path, marker: Marker, name: str) -> None:
    write_marker(tmp_path, marker)
    value = json.loads((tmp_path / MARKER).read_text())
    value[name] = "x" if isinstance(value[name], str) else [*value[name], "x"]
    (tmp_path / MARKER).write_text(json.dumps(value))
    assert read_marker(tmp_path) is not None and own_marker(tmp_path, marker.store) is None


def test_a_marker_proves_nothing_beside_media_of_others(tmp_path: Path, marker: Marker) -> None:
    write_marker(tmp_path, marker)
    assert own_marker(tmp_path) is not None
    (tmp_path / "media.jsonl").write_text('{"address": "http://127.0.0.1/"}\n')
    assert own_marker(tmp_path) is None


@pytest.mark.parametrize("lost", [MARKER, "media.jsonl"])
def test_a_folder_stays_its_users_own_wherever_a_run_is_killed(
    tmp_path: Path, marker: Marker, lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_marker(tmp_path, marker)
    write_proved(tmp_path, {"media.jsonl": ["{}\n"]}, marker.store)

    def killed(path: Path, to: Path) -> None:
        if to.name == lost:
            raise Interrupted("killed")
        os.replace(path, to)

    with monkeypatch.context() as patch:
        patch.setattr("artifacts.disk.files.replace_file", killed)
        with pytest.raises(Interrupted):
            write_proved(tmp_path, {"media.jsonl": ["{}\n", "{}\n"]}, marker.store)
    assert own_marker(tmp_path) is not None
    assert (tmp_path / "media.jsonl").read_text() == "{}\n"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"command": 1}', "[" * 100_000])
def test_a_malformed_marker_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / MARKER).write_text(content)
    assert read_marker(tmp_path) is None and own_marker(tmp_path) is None


def test_a_link_is_no_marker(tmp_path: Path, marker: Marker) -> None:
    write_marker(tmp_path / "out", marker)
    (tmp_path / MARKER).symlink_to(tmp_path / "out" / MARKER)
    assert read_marker(tmp_path) is None


def test_a_note_of_one_purpose_proves_nothing_for_another() -> None:
    is_edit, is_marker = proof_by("", "edit"), proof_by("", "marker")
    assert not is_edit({"a": 1})
    note("edit", {"a": 1}, "")
    assert is_edit({"a": 1}) and not is_marker({"a": 1}) and not is_edit({"a": 2})
