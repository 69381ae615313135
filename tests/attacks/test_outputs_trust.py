"""What a stranger's output folder says is shown, and believed only if a note proves it."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from artifacts.disk.files import link, write_text
from artifacts.disk.regular_files import guard, open_below
from artifacts.errors import EnvironmentFault, UsageError
from artifacts.records.provenance import ROUND, anybody, note, proof_by
from artifacts.texts.edits import EDITS, TORN, read_edits
from flows.commands.report.facts import write_report
from flows.commands.review.captions import ReviewedCaptions
from flows.commands.sift.run import sift
from flows.core.console.display import Display
from flows.core.media.generated_files import digest_at
from flows.core.options.commands import CaptionConfig
from flows.core.options.vectors import SiftConfig
from flows.interfaces.cli.main import main
from flows.interfaces.studio.run_captions import RunCaptions
from flows.outputs.folder.trust import belief_in, command_in, is_trusted, own_belief
from flows.outputs.marker import MARKER
from tests.support.pipeline import read_lines
from tests.support.saying import lines, make, run
from tests.support.strangers import another_user, own_folder, snapshot, strangers_folder

PLANTED = "PLANTED BY A STRANGER"


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CaptionConfig:
    """A run of this user."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    config = make(tmp_path)
    run(config)
    return config


def edit(out: Path, text: str, at: int = 0, **more: Any) -> None:
    with closing(ReviewedCaptions(out, shows_all=True)) as captions:
        changes = [{"of": list(captions.folder.rows)[at], "caption": text, "review": ""}]
        captions.apply({"id": f"{text} {at}", "does": "x", "changes": changes, **more})


@pytest.fixture
def theirs(mine: CaptionConfig, tmp_path: Path) -> Path:
    """The same captions in a folder of another user, who planted an edit and names this user's
    store."""
    out = tmp_path / "theirs"
    shutil.copytree(mine.out, out)
    (tmp_path / "their store").mkdir()
    words = ["caption", "--endpoint", "http://evil.example"]
    strangers_folder(out, words, "/", str(tmp_path / "their store"))
    with another_user(out.parent / "state of another"):
        edit(out, PLANTED)
    strangers_folder(out, words, "/", str(mine.store))
    return out


def texts(config: CaptionConfig) -> list[str]:
    return [row["caption"] for row in lines(config)]


def edits_shown(out: Path, shows_all: bool = True) -> list[str | None]:
    with closing(ReviewedCaptions(out, shows_all=shows_all)) as captions:
        return [each.caption for each in captions.edits().values()]


def append(content: bytes, path: Path) -> None:
    with open(path, "ab") as file:
        file.write(content)


def change_lines(path: Path, change: Callable[[list[dict[str, Any]]], object]) -> int:
    """Change the lines of a file; return how many it has."""
    change(rows := read_lines(path))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return len(rows)


def test_a_strangers_edits_enter_no_store_or_run_of_mine(mine: CaptionConfig, theirs: Path) -> None:
    before, stored = texts(mine), snapshot(Path(mine.store))
    assert edits_shown(theirs) == [PLANTED]
    edit(theirs, "My own words.", at=1)
    assert [each.caption for each in read_edits(theirs).now.values()] == [PLANTED, "My own words."]
    assert snapshot(Path(mine.store)) == stored
    run(mine)
    assert texts(mine) == before


def test_a_trusted_folders_edits_enter_the_store_that_i_named(
    mine: CaptionConfig, theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "named").mkdir()
    monkeypatch.setenv("PENSTOCK_STORE", str(tmp_path / "named"))
    ReviewedCaptions(theirs, trust=True).close()
    assert PLANTED in (tmp_path / "named/corrections.jsonl").read_text()
    assert not Path(mine.store, "corrections.jsonl").exists(), "the store that the folder names"
    ReviewedCaptions(theirs, mine.store, trust=True).close()
    run(mine)
    assert PLANTED in texts(mine)


def test_lines_of_others_in_my_folder_count_if_trusted(mine: CaptionConfig, theirs: Path) -> None:
    before, out = texts(mine), Path(mine.out)
    assert edits_shown(out) == []
    append((theirs / EDITS).read_bytes(), out / EDITS)
    edit(out, "My own words.", at=1)
    assert belief_in(out).is_own
    assert edits_shown(out, shows_all=False) == ["My own words."]
    result = run(mine)
    assert texts(mine) == [before[0], "My own words.", *before[2:]]
    (note,) = (each for each in result.warnings if "--trust-folder" in each)
    assert note.startswith(f"1 edit in {out / EDITS} not applied")
    result = run(replace(mine, trust_folder=True))
    assert texts(mine) == [PLANTED, "My own words.", *before[2:]]
    assert not any("--trust-folder" in each for each in result.warnings)


def test_an_undo_reverts_my_edit_and_no_earlier_one(mine: CaptionConfig, theirs: Path) -> None:
    out = Path(mine.out)
    edit(out, "My own words.")
    append((theirs / EDITS).read_bytes(), out / EDITS)
    proof = proof_by("")

    def proved() -> list[str | None]:
        return [each.caption for each in read_edits(out, proof).now.values()]

    with closing(ReviewedCaptions(out, shows_all=True)) as captions:
        captions.apply({"id": "u1", "does": "undo"})
        assert [each.caption for each in captions.edits().values()] == proved() == ["My own words."]
        captions.apply({"id": "u2", "does": "undo"})
        assert not captions.edits() and not proved()
        captions.apply({"id": "r1", "does": "redo"})
    assert proved() == ["My own words."]
    line = (out / EDITS).read_bytes().splitlines(keepends=True)[0]
    append(line.replace(b"My own", b"Other ") + line, out / EDITS)
    found = read_edits(out, proof)
    assert (found.unproved, len(found.every)) == (2, 4), "changed, and copied"


ADDRESSES = (
    {"address": "http://127.0.0.1:9/a.mp4"},
    {"address": "s3://bucket/a.mp4"},
    {"url": "http://127.0.0.1:9/a.mp4"},
    {"url": "file://http%3A//127.0.0.1:9/a.mp4"},
)


@pytest.mark.in_turn
@pytest.mark.parametrize("more", ADDRESSES, ids=str)
def test_addresses_of_a_stranger_have_no_place_to_fetch_from(
    theirs: Path, more: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    count = change_lines(theirs / "media.jsonl", lambda rows: rows[1].update(more))
    for trust in (False, True):
        with closing(RunCaptions(theirs, trust=trust)) as captions:
            places = [captions.place(number) for number in range(count)]
        assert os.path.isabs(places[0]) and ("://" in places[1]) == trust, places
    assert not is_trusted(theirs)
    host = "bucket" if "s3" in str(more) else "127.0.0.1:9"
    assert f"fetch media from {host}" in capfd.readouterr().err


def test_a_genuine_marker_proves_nothing_of_foreign_media(
    mine: CaptionConfig, theirs: Path, tmp_path: Path
) -> None:
    out = Path(mine.out)
    assert belief_in(out.rename(tmp_path / "moved")).is_own, "moved"
    (tmp_path / "moved").rename(out)
    append(b"\n", theirs / "media.jsonl")
    shutil.copy(out / MARKER, theirs / MARKER)
    assert not belief_in(theirs).is_own
    with pytest.raises(UsageError, match="--trust-folder"):
        own_belief(theirs)
    (theirs / MARKER).unlink()
    (theirs / MARKER).symlink_to(out / MARKER)
    assert not belief_in(theirs).is_own


def test_another_machine_believes_the_store_that_i_name(
    mine: CaptionConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each session of a notebook is a new machine; the store lies on a disk that stays."""
    out = Path(mine.out)
    edit(out, "My own words.")
    with another_user(tmp_path / "another machine"):
        monkeypatch.setenv("PENSTOCK_STORE", str(tmp_path / "unnamed"))
        assert not belief_in(out).is_own, "the folder names the store, and nobody else does"
        assert read_edits(out, belief_in(out).proof()).unproved == 1
        monkeypatch.setenv("PENSTOCK_STORE", str(mine.store))
        assert belief_in(out).is_own and belief_in(out, str(mine.store)).is_own
        assert read_edits(out, belief_in(out).proof()).unproved == 0
        run(mine)
        assert texts(mine)[0] == "My own words."


def test_a_terminal_is_asked_once_and_without_one_nothing_is_believed(
    theirs: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert not is_trusted(theirs)
    printed = capfd.readouterr().err
    assert "--trust-folder would take 1 edit for yours" in printed and "evil.example" in printed
    monkeypatch.setattr("flows.outputs.folder.trust.is_terminal", lambda _: True)
    for answer in ("y", "YES", "n", "", "yess"):
        request = list[str]()
        monkeypatch.setattr(
            "builtins.input", lambda text, a=answer, to=request: to.append(text) or a
        )
        assert is_trusted(theirs) == (answer.lower() in ("y", "yes"))
        assert request == ["Trust it? [y/N] "]
    shown = capfd.readouterr().out
    assert "  take 1 edit for yours" in shown and "let Write and Learn run: cd / && " in shown


def test_nothing_is_asked_about_my_own_folder(mine: CaptionConfig, tmp_path: Path) -> None:
    edit(Path(mine.out), "My own words.")
    assert not is_trusted(Path(mine.out)) and not is_trusted(tmp_path / "none")


def test_a_journal_that_is_a_link_leaves_the_file_behind_it(theirs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a line that was never ended")
    (theirs / EDITS).unlink()
    (theirs / EDITS).symlink_to(tmp_path / "file")
    with pytest.raises(EnvironmentFault, match=f"{theirs / EDITS}: it is a link"):
        ReviewedCaptions(theirs)
    assert (tmp_path / "file").read_text() == "a line that was never ended"


def test_torn_bytes_are_kept_beside_before_they_are_cut(mine: CaptionConfig) -> None:
    out = Path(mine.out)
    edit(out, "My own words.")
    whole = (out / EDITS).read_bytes()
    for torn in (b'{"id": "half', b"\xff\x00"):
        (out / EDITS).write_bytes(whole + torn)
        ReviewedCaptions(out).close()
        assert (out / EDITS).read_bytes() == whole
    assert (out / TORN).read_bytes() == b'{"id": "half\n\xff\x00\n'
    (out / TORN).unlink()
    (out / TORN).symlink_to(out.parent / "elsewhere")
    (out / EDITS).write_bytes(whole + b"half")
    with pytest.raises(EnvironmentFault, match="it is a link"):
        ReviewedCaptions(out)
    assert (out / EDITS).read_bytes() == whole + b"half", "nothing is cut that was not kept"
    assert not (out.parent / "elsewhere").exists()


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Path]:
    """A guarded folder, named by a link, with links to a folder elsewhere."""
    for name in ("real/inner/deep", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "named").symlink_to(tmp_path / "real")
    for name in ("link", "inner/deep/link"):
        (tmp_path / "real" / name).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "real/file").symlink_to(tmp_path / "elsewhere/file")
    guard(tmp_path / "named")
    yield tmp_path / "named"
    assert os.listdir(tmp_path / "elsewhere") == []


def test_no_link_below_an_output_folder_is_followed(guarded: Path, tmp_path: Path) -> None:
    (tmp_path / "source").write_text("x")
    for name in ("link/a", "link/more/a", "inner/deep/link/a"):
        with pytest.raises(EnvironmentFault, match="link: it is a link, and is not followed"):
            write_text(guarded / name, ["x"])
        with pytest.raises(EnvironmentFault, match="link: it is a link, and is not followed"):
            link(tmp_path / "source", guarded / name)
        with pytest.raises(OSError, match="it is a link"):
            open_below(guarded / name, os.O_WRONLY | os.O_CREAT)
    write_text(guarded / "inner/deep/file", ["x"])  # a plain file
    write_text(guarded / "file", ["x"])  # the link is replaced
    assert not (guarded / "file").is_symlink() and (guarded / "inner/deep/file").read_text() == "x"
    (guarded / "file").unlink()
    (guarded / "file").symlink_to(tmp_path / "elsewhere/file")
    with pytest.raises(OSError, match="it is a link"):
        open_below(guarded / "file", os.O_WRONLY | os.O_CREAT)
    os.close(open_below(guarded / "new", os.O_WRONLY | os.O_CREAT))
    assert (tmp_path / "real/new").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["logs", "logs/frames.log", "logs/frames.items.jsonl"])
def test_logs_of_a_run_follow_no_link(mine: CaptionConfig, tmp_path: Path, name: str) -> None:
    from flows.execution.run import caption  # with real processes

    path, file = Path(mine.out) / name, tmp_path / "file"
    (tmp_path / "elsewhere").mkdir()
    file.write_text("mine")
    shutil.rmtree(Path(mine.out) / "logs", ignore_errors=True)
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(tmp_path / "elsewhere" if name == "logs" else file)
    for video in (tmp_path / "clips").glob("*.mp4"):
        shutil.copy(video, video.with_name(f"new {video.name}"))
    picture = next((tmp_path / "clips").glob("*.PNG"))
    picture.write_bytes(picture.read_bytes() + b"0")  # frames that are not stored yet
    config = replace(mine, model="demo", store=str(tmp_path / "fresh"))
    with pytest.raises(EnvironmentFault, match=f"{path}: it is a link"):
        caption(config, Display(quiet=True))
    assert file.read_text() == "mine" and os.listdir(tmp_path / "elsewhere") == []


def test_a_report_requests_no_address_that_no_folder_of_mine_vouches_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pictures").mkdir()
    for shade in (40, 200):
        Image.new("RGB", (64, 48), (shade, 30, 30)).save(tmp_path / f"pictures/{shade}.png")
    out, request = tmp_path / "marks", list[str]()
    sift(SiftConfig(sources=(str(tmp_path / "pictures"),), out=str(out)), Display(quiet=True))
    address = "http://127.0.0.1:9/a.png"
    local = read_lines(out / "marks.jsonl")[1]["path"]
    change_lines(out / "marks.jsonl", lambda rows: rows[0].update(path=address))

    def noted(source: str, *_: object) -> str:
        request.append(source)
        return ""

    monkeypatch.setattr("flows.commands.report.facts.data_address", noted)
    write_report(out)
    assert request == [local]
    change_lines(out / "media.jsonl", lambda entries: entries[0].update(address=address))
    write_report(out)
    assert request == [local] * 2, "changed since it was noted"
    own_folder(out)
    write_report(out)
    assert request == [local, local, address, local]


def test_every_line_is_noted_when_it_is_written(mine: CaptionConfig) -> None:
    out = Path(mine.out)
    edit(out, "My own words.")
    (line,) = (out / EDITS).read_text().splitlines()
    assert read_edits(out, proof_by("")).unproved == 0
    for other in ("someone", "elses"):
        with another_user(out.parent / other):
            assert read_edits(out, proof_by("")).unproved == 1
            assert read_edits(out, proof_by(str(mine.store))).unproved == 0
    note(ROUND, changed := {**json.loads(line), "id": "other"}, "")  # it stands for no edit
    (out / EDITS).write_text(json.dumps(changed) + "\n")
    assert read_edits(out, proof_by("")).unproved == 1 and len(read_edits(out, anybody).now) == 1


def test_what_is_trusted_is_what_was_there_when_it_was_first_read(tmp_path: Path) -> None:
    strangers_folder(tmp_path, ["caption", "a", "--model", "demo"], str(tmp_path))
    first = belief_in(tmp_path, trust=True).marker
    strangers_folder(tmp_path, ["caption", "private", "--model", "demo"], str(tmp_path))
    assert belief_in(tmp_path, trust=True).marker == first
    assert first is not None and first.words[1] == "a"


def test_captions_that_no_run_wrote_prove_nothing(tmp_path: Path) -> None:
    (tmp_path / "captions.jsonl").write_text("{}\n")
    own_folder(tmp_path)
    assert belief_in(tmp_path).is_own
    (tmp_path / "captions.jsonl").write_text('{"caption": "of another chunk"}\n')
    assert not belief_in(tmp_path).is_own


@pytest.mark.parametrize("name", ["captions.jsonl", "media.jsonl", "failures.jsonl", "run.json"])
@pytest.mark.parametrize("command", ["report", "status", "review"])
def test_no_page_shows_what_a_link_of_a_stranger_leads_to(
    mine: CaptionConfig, theirs: Path, capsys: pytest.CaptureFixture[str], command: str, name: str
) -> None:
    (theirs / name).unlink(missing_ok=True)
    (theirs / name).symlink_to(Path(mine.out) / name)
    assert main([command, str(theirs)]) == 5
    assert f"{theirs / name}: it is a link, and is not followed" in capsys.readouterr().err
    assert not (theirs / "report.html").exists()


@pytest.mark.parametrize("named", ["--adapter={}", "--adapter {}", "--schema @{}/config.json"])
def test_a_command_is_not_repeated_with_what_another_put_in_the_place_of_its_adapter(
    mine: CaptionConfig, named: str
) -> None:
    out, adapter = Path(mine.out), Path(mine.out) / "adapters" / "mine"
    adapter.mkdir(parents=True)
    (adapter / "config.json").write_text("{}")
    (adapter / "adapter_model.safetensors").write_bytes(b"mine")
    words = ["caption", *mine.sources, *named.format(adapter).split(), f"--out={out}"]
    own_folder(out, {"words": words, "folder": "/"}, mine.store)
    assert command_in(out).words == tuple(words)
    (adapter / "config.json").write_text("{} ")
    (adapter / "adapter_model.safetensors").write_bytes(b"evil")
    with pytest.raises(UsageError, match="was changed since the captions"):
        command_in(out)
    assert command_in(out, trust=True).words == tuple(words)


def test_no_place_of_a_stranger_leads_to_what_is_no_medium(theirs: Path, tmp_path: Path) -> None:
    (tmp_path / "private.txt").write_text("private")
    private = (tmp_path / "private.txt").as_uri()
    change_lines(theirs / "media.jsonl", lambda rows: rows[1].update(url=private))
    with closing(RunCaptions(theirs)) as captions:
        assert captions.place(0) and not captions.place(1)


def test_a_sparse_file_of_terabytes_holds_nothing_up(mine: CaptionConfig) -> None:
    out = Path(mine.out)
    for name in ("long.txt", "media.jsonl", "captions.csv"):
        os.truncate(out / name, 1 << 42)
    assert belief_in(out).marker is None  # media.jsonl is no longer the one that was noted
    assert digest_at(out / "long.txt") == digest_at(out / "captions.csv") == ""
