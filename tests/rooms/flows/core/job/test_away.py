"""Rows of media whose disk or folder is away stay, and those of deleted media go."""

import errno
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from artifacts.errors import UsageError
from flows.interfaces.cli.main import main
from tests.support.away import Disk, disk
from tests.support.commands import completed
from tests.support.families import checkpoint
from tests.support.faults import failing
from tests.support.inside import Ran, run_inside
from tests.support.pipeline import Place, read_lines

pytestmark = pytest.mark.filterwarnings(r"ignore:unclosed file .*\.tar:ResourceWarning")
COLOURS = {"a": "red", "d1/b": "blue", "d1/c": "green", "d2/d": "yellow"}
NAMES = [f"{name}.png" for name in COLOURS]
OPTIONS: dict[str, Any] = {"max_new_tokens": 4, "recursive": True}


def draw(folder: Path, names: dict[str, str]) -> None:
    for name, colour in names.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48), colour).save(folder / f"{name}.png")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    clips, out, store = (tmp_path / name for name in ("clips", "out", "store"))
    draw(clips, COLOURS)
    return Place(clips=clips, out=out, store=store, model=str(checkpoint("llava")))


@pytest.fixture
def mounted(place: Place, tmp_path: Path) -> Iterator[Disk]:
    """The folder `d1` is a disk, and something lies where it is mounted."""
    point, files = place.clips / "d1", tmp_path / "disk"
    point.rename(files)
    point.mkdir()
    (point / "NOT MOUNTED").touch()
    with disk(point, files) as found:
        yield found


def named(place: Place) -> list[str]:
    return [row["media_path"] for row in place.captions()]


def said_of(place: Place, what: str = "caption") -> list[tuple[str, str]]:
    return sorted((row["media_path"], row[what]) for row in place.captions())


def away_in(ran: Ran) -> list[tuple[str, str]]:
    failures = ran.result.failures
    return [(each.media_path, each.message) for each in failures if each.error == "away"]


@pytest.mark.slow
def test_rows_of_a_disk_that_is_not_mounted_stay_and_are_the_same_when_it_is_back(
    place: Place, mounted: Disk, capsys: pytest.CaptureFixture[str]
) -> None:
    form = ("txt", "csv", "kohya", "webdataset", "hf")
    everything: dict[str, Any] = {**OPTIONS, "format": form}
    assert run_inside(place, **everything).result.exit_code == 0
    outputs = ("captions.jsonl", "media.jsonl", "captions.csv", "d1/b.txt")
    before = {name: (place.out / name).read_bytes() for name in outputs}
    assert named(place) == NAMES
    mounted.unmount()
    draw(place.clips, {"a2": "purple"})  # another order
    ran = run_inside(place, **everything)
    assert ran.result.exit_code == 1 and named(place) == ["a.png", "a2.png", *NAMES[1:]]
    kind = f"not mounted ({file_system_of(mounted)}): 2 rows of 2 files kept"
    assert away_in(ran) == [(str(mounted.point), kind)]
    line = ran.result.line()
    assert f"--replace drops its rows: {mounted.point} ({kind})" in line and "failed" not in line
    assert main(["status", str(place.out)]) == 0
    status = capsys.readouterr().out
    assert f"{mounted.point}: {kind}" in status and "--replace" in status
    with tarfile.open(place.out / "webdataset" / "000000.tar") as shard:
        pictures = [each for each in shard.getnames() if each.endswith(".png")]
    assert len(pictures) == len(NAMES) + 1, "media of the data set are there, too"
    entries = json.loads(next((place.out / "kohya").glob("*.json")).read_text())
    assert {Path(entry).name for entry in entries} >= {Path(name).name for name in NAMES}
    (rows,) = (place.out / "hf").glob("**/metadata.jsonl")
    assert len(read_lines(rows)) == len(NAMES) + 1
    (place.clips / "a2.png").unlink()
    mounted.mount()
    ran = run_inside(place, **everything)
    assert ran.result.exit_code == 0 and ran.started.count("frames") == 0
    assert {name: (place.out / name).read_bytes() for name in before} == before


def file_system_of(mounted: Disk) -> str:
    """Return the kind of file system as the system's own program names it."""
    shown = ["findmnt", "--noheadings", "--output", "FSTYPE", "--target", str(mounted.point.parent)]
    return completed(shown, check=True).stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize("what", ["empty", "gone", "source gone", "unreadable"])
def test_rows_below_a_folder_that_is_away_stay(
    place: Place, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_inside(place, **OPTIONS)
    folder, count = (place.clips, 4) if what == "source gone" else (place.clips / "d1", 2)
    if what == "unreadable":
        deny(folder, monkeypatch)
    else:
        shutil.rmtree(folder)
    if what == "empty":
        folder.mkdir()
    ran = run_inside(place, **OPTIONS)
    assert ran.result.exit_code == 1 and named(place) == NAMES
    ((where, why),) = away_in(ran)
    assert where == str(folder) and why.endswith(f"{count} rows of {count} files kept")
    (place.clips / "a.png").unlink(missing_ok=True)
    if what == "source gone":
        draw(place.clips, {"other": "red"})
    if what != "unreadable":
        assert run_inside(place, **OPTIONS, replace=True).result.exit_code == 0
        assert named(place) == ["other.png" if what == "source gone" else "d2/d.png"]


def deny(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a folder be of a disk with faults, from which nothing can be read."""

    def is_below(path: Any = ".", **_: Any) -> bool:
        return isinstance(path, (str, Path)) and f"{path}/".startswith(f"{folder}/")

    for name in ("scandir", "lstat"):
        monkeypatch.setattr(os, name, failing(errno.EIO, getattr(os, name), is_below))


def test_rows_of_a_deleted_file_go_and_are_counted(place: Place) -> None:
    run_inside(place, **OPTIONS)
    (place.clips / "d1" / "b.png").unlink()
    (place.clips / "a.png").unlink()
    ran = run_inside(place, **OPTIONS)
    assert ran.result.exit_code == 0 and named(place) == ["d1/c.png", "d2/d.png"]
    assert "any more: 2 captions of 2 files that this run does not read" in ran.said


def test_media_that_moved_have_no_second_row_and_copies_keep_theirs(place: Place) -> None:
    draw(place.clips, {"copy": "blue"})
    run_inside(place, **OPTIONS)
    (place.clips / "d2").rename(place.clips / "d3")
    shutil.rmtree(place.clips / "d1")
    ran = run_inside(place, **OPTIONS)
    assert sorted(named(place)) == ["a.png", "copy.png", "d1/b.png", "d1/c.png", "d3/d.png"]
    assert [where for where, _ in away_in(ran)] == [str(place.clips / "d1")]


@pytest.mark.slow
def test_files_in_an_unlistable_folder_stay(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    run_inside(place, **OPTIONS)
    folder = place.clips / "d1"
    refusing = failing(errno.EACCES, os.scandir, lambda path=".": str(path) == str(folder))
    monkeypatch.setattr(os, "scandir", refusing)
    ran = run_inside(place, **OPTIONS)
    assert ran.result.exit_code == 1 and named(place) == NAMES
    assert away_in(ran) == [(str(folder), "Permission denied: 2 rows of 2 files kept")]


def test_files_of_one_name_in_two_folders_keep_their_rows(place: Place, tmp_path: Path) -> None:
    """Two cards of cameras number their pictures alike."""
    pictures = {"one/x": "red", "two/x": "blue", "three/x": "green", "three/y": "white"}
    draw(tmp_path, pictures)
    (listed := tmp_path / "list.txt").write_text("".join(f"{n}.png\n" for n in pictures))
    options = {**OPTIONS, "sources": (f"@{listed}",)}
    run_inside(place, **options)
    before = said_of(place)
    assert len(before) == 4
    for folder in ("one", "two"):
        shutil.rmtree(tmp_path / folder)
    run_inside(place, **options)
    assert said_of(place) == before


def test_one_file_that_is_new_stands_for_one_that_moved(place: Place) -> None:
    draw(place.clips, {"d1/twin": "blue", "d1/other": "blue"})
    run_inside(place, **OPTIONS)
    same = [name for name in named(place) if name.startswith("d1/")]
    (place.clips / "d1").rename(place.clips / "away")
    (place.clips / "away" / "twin.png").rename(place.clips / "one.png")
    shutil.rmtree(place.clips / "away")
    run_inside(place, **OPTIONS)
    left = [name for name in named(place) if name.startswith("d1/")]
    assert "one.png" in named(place) and len(left) == len(same) - 1


def test_a_new_copy_takes_no_row_of_a_disk_that_is_not_mounted(place: Place, mounted: Disk) -> None:
    draw(mounted.point, {"twin": "blue", "other": "blue"})
    run_inside(place, **OPTIONS)
    before = named(place)
    copied = (mounted.point / "twin.png").read_bytes()
    mounted.unmount()
    (place.clips / "backup.png").write_bytes(copied)
    run_inside(place, **OPTIONS)
    assert sorted(named(place)) == sorted([*before, "backup.png"])


def test_a_run_whose_store_lacks_records_of_what_is_away_is_refused(place: Place) -> None:
    run_inside(place, **OPTIONS)
    before = (place.out / "captions.jsonl").read_bytes()
    shutil.rmtree(place.clips / "d1")
    other: dict[str, Any] = {**OPTIONS, "max_new_tokens": 5}
    with pytest.raises(UsageError, match=r"d1 is away .* no records of d1/b\.png"):
        run_inside(place, **other)
    assert (place.out / "captions.jsonl").read_bytes() == before
    assert run_inside(place, **other, replace=True).result.captions == 2


@pytest.mark.slow
def test_what_is_away_keeps_its_own_prompt(place: Place) -> None:
    """Nothing is made of it, though the store has its features."""
    run_inside(place, **OPTIONS, prompt="What is it?")
    shutil.rmtree(place.clips / "d1")
    ran = run_inside(place, **OPTIONS, prompt="And now?")
    prompts = {"d1": "What is it?", "d2": "And now?", "a.png": "And now?"}
    assert said_of(place, "prompt") == [(n, prompts[n.partition("/")[0]]) for n in NAMES]
    assert ran.result.exit_code == 1


@pytest.mark.slow
def test_no_text_is_written_where_a_disk_belongs(place: Place, mounted: Disk) -> None:
    beside: dict[str, Any] = {**OPTIONS, "format": ("txt",), "beside": True}
    run_inside(place, **beside)
    mounted.unmount()
    assert run_inside(place, **beside).result.exit_code == 1
    assert [each.name for each in mounted.point.iterdir()] == ["NOT MOUNTED"]


@pytest.mark.slow
def test_marks_of_a_disk_that_is_not_mounted_stay(place: Place, mounted: Disk) -> None:
    command = ["sift", str(place.clips), "--recursive", "--store", str(place.store), "--quiet"]
    command += ["--out", str(place.out)]
    assert main(command) == 0
    before = read_lines(place.out / "marks.jsonl")
    assert len(before) == len(COLOURS)
    mounted.unmount()
    assert main(command) == 1
    assert read_lines(place.out / "marks.jsonl") == before
    assert [each["error"] for each in read_lines(place.out / "failures.jsonl")] == ["away"]
    mounted.mount()
    assert main(command) == 0 and read_lines(place.out / "marks.jsonl") == before


@pytest.mark.slow
def test_a_list_keeps_its_rows_and_their_prompts(place: Place, tmp_path: Path) -> None:
    entries = [{"path": str(place.clips / name), "prompt": f"What of {name}?"} for name in NAMES]
    listed = tmp_path / "list.jsonl"
    listed.write_text("".join(json.dumps(each) + "\n" for each in entries))
    given: dict[str, Any] = {"max_new_tokens": 4, "sources": (str(listed),)}
    assert run_inside(place, **given).result.exit_code == 0
    before = said_of(place, "prompt")
    shutil.rmtree(place.clips / "d1")
    assert run_inside(place, **given).result.exit_code == 1
    assert said_of(place, "prompt") == before


@pytest.mark.slow
def test_what_is_made_again_is_counted_with_the_reason(place: Place) -> None:
    """One weight of the language half changes, and one file holds both halves."""
    from safetensors.numpy import load_file, save_file

    model = place.out.parent / "model"
    shutil.copytree(place.model, model)
    place = Place(clips=place.clips, out=place.out, store=place.store, model=str(model))
    assert "made again" not in run_inside(place, **OPTIONS).said
    assert "made again" not in run_inside(place, **OPTIONS).said
    weights = model / "model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if "lm_head" in name or "embed_tokens" in name)
    tensors[name] = tensors[name] + 1
    save_file(tensors, weights, {"format": "pt"})
    draw(place.clips, {"new": "purple"})
    said = " ".join(run_inside(place, **OPTIONS).said.split())
    changed = "changed since the last run: weights of the vision half, weights of the language half"
    assert f"made again: captions 4, features 4, frames 4 ({changed})" in said
    said = run_inside(place, **OPTIONS, prompt="And now?").said
    assert "made again: captions 5 (changed since the last run: the prompt)" in said


@pytest.mark.slow
def test_no_upgrade_changes_what_made_a_line(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import version

    run_inside(place, **OPTIONS)
    before = (place.out / "captions.jsonl").read_bytes()
    assert {row["penstock"] for row in place.captions()} == {version("penstock")}
    assert len({row["weights"] for row in place.captions()}) == 1
    assert not any("commit" in row for row in place.captions()), "a folder is of no hub"
    newer = {"penstock": "999.0"}
    monkeypatch.setattr("flows.core.job.summary.versions", lambda: newer)
    ran = run_inside(place, **OPTIONS)
    assert ran.started == [] and (place.out / "captions.jsonl").read_bytes() == before
    draw(place.clips, {"new": "purple"})
    run_inside(place, **OPTIONS)
    made = {row["media_path"]: row["penstock"] for row in place.captions()}
    assert made.pop("new.png") == "999.0" and set(made.values()) == {version("penstock")}
