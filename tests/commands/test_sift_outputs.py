"""What `penstock sift` writes and prints: lists that keep names, tables, JSON, and errors."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from flows.commands.sift import run as running
from flows.core.media.media_file import MediaFile, Selection
from flows.core.media.sources import find_media
from flows.interfaces.cli.main import main
from flows.interfaces.studio.run_captions import choose
from tests.support.builders.planted import drawn
from tests.support.pipeline import read_lines

Said = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures with one name in two folders."""
    scenes = drawn(np.random.default_rng(8))
    for name in ("a", "b"):
        (tmp_path / "media" / name).mkdir(parents=True)
        next(scenes).resize((200, 120)).save(tmp_path / "media" / name / "x.png")
    return tmp_path / "media"


def sift(folder: Path, *words: str) -> int:
    return main(["sift", str(folder), "--recursive", "--out", str(folder.with_name("out")), *words])


def found(source: Path) -> list[MediaFile]:
    files, failures = find_media([str(source)], Selection(recursive=True, extensions=()))
    assert not failures
    return files


@pytest.mark.slow
def test_a_list_of_what_is_kept_names_files_as_their_folder_does(folder: Path) -> None:
    assert sift(folder, "--quiet", "--format", "csv,parquet") == 0
    out = folder.with_name("out")
    assert [file.media_path for file in found(out / "kept.jsonl")] == ["a/x.png", "b/x.png"]
    assert found(out / "kept.jsonl") == found(folder)
    import pandas

    kept = pandas.read_parquet(out / "kept.parquet")
    assert kept.equals(pandas.read_csv(out / "kept.csv"))
    assert kept.to_dict("records") == read_lines(out / "kept.jsonl")


def test_a_list_cannot_name_a_file_after_another(folder: Path, tmp_path: Path) -> None:
    path = str(folder / "a" / "x.png")
    names = ("../x.png", "/x.png", "b/x.png", "y.png", str(folder), "")
    lines = [json.dumps({"path": path, "media_path": name, "source": "s"}) for name in names]
    lines += [json.dumps({"path": str(folder), "media_path": "a/x.png", "source": "s"})]
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    # The file and its folder's other one, each once, under the first name that can be its own.
    assert [file.media_path for file in found(tmp_path / "list.jsonl")] == ["x.png", "b/x.png"]


@pytest.mark.slow
def test_whole_numbers_are_whole_in_tables(folder: Path) -> None:
    assert sift(folder, "--quiet", "--format", "parquet") == 0
    import pyarrow.parquet as pq

    schema = pq.read_schema(folder.with_name("out") / "marks.parquet")
    types = {name: str(schema.field(name).type) for name in schema.names}
    assert {types[n] for n in ("width", "faults", "duplicate", "group", "blurred")} == {"int64"}
    assert {types[n] for n in ("sharpness", "motion", "seconds")} == {"double"}
    assert sift(folder, "--quiet", "--keep", "width > 100.5 and faults in (0, 0.5)") == 0
    assert len(read_lines(folder.with_name("out") / "kept.jsonl")) == 2


@pytest.mark.slow
def test_a_picture_of_one_bit_is_never_the_best(folder: Path) -> None:
    with Image.open(folder / "a" / "x.png") as picture:
        picture.resize((800, 480)).convert("1").save(folder / "Müller.png")
    assert sift(folder, "--quiet", "--keep", "duplicate = 0") == 0
    out = folder.with_name("out")
    (left,) = read_lines(out / "left_out.jsonl")
    assert left["media_path"] == "Müller.png"
    for name in ("marks", "left_out", "media"):  # where grep finds it
        assert "Müller.png" in (out / f"{name}.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["similar = 0", "width > 3 and similar_group is null"])
def test_a_condition_on_vectors_without_vectors_fails(
    name: str, folder: Path, capsys: Said
) -> None:
    assert sift(folder, "--keep", name) == sift(folder, "--keep", name, "--dry-run") == 2
    assert capsys.readouterr().err.count("without --similar") == 2


def test_errors_name_the_option_and_command_at_fault(folder: Path, capsys: Said) -> None:
    words = ["caption", str(folder), "--model", "demo", "--out", str(folder.with_name("o"))]
    for command, says, others in (
        ([*words, "--sift", "sharp > 3"], "--sift cannot be read", "--keep"),
        ([*words, "--sift", "duplicates = 0"], "(did you mean duplicate?)", "--keep"),
        (["sift"], "no source", "caption"),
    ):
        assert main(command) == 2
        assert says in (error := capsys.readouterr().err) and others not in error


def test_a_run_that_is_stopped_says_how_its_tables_are_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(running.SiftRun, "_run", stop)
    assert sift(folder, "--keep", "blurred = 0") == 4
    error = capsys.readouterr().err
    assert "no table is written yet" in error and "--keep 'blurred = 0'" in error


def test_json_is_printed_where_it_is_asked_for(folder: Path, capsys: Said) -> None:
    assert sift(folder, "--json", "--dry-run") == 0
    assert json.loads(capsys.readouterr().out) == {"files": 2, "contents": 2, "to_mark": 2}
    assert main(["sift", "--marks", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["blurred"]["range"] == "0, 1"
    assert sift(folder, "--json") == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["label"] for event in events if event["event"] == "item"] == ["x.png", "x.png"]


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return read_lines(folder.with_name("out") / f"{name}.jsonl")


def marks_of(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["media_path"]: row for row in rows(folder, "marks")}


def kept(folder: Path) -> list[str]:
    return sorted(row["media_path"] for row in rows(folder, "kept"))


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    (tmp_path / "media").mkdir()
    return tmp_path / "media"


@pytest.mark.slow
def test_of_pictures_that_fade_each_one_left_out_is_a_copy_of_one_that_is_kept(empty: Path) -> None:
    one, other = (next(drawn(np.random.default_rng(seed))).resize((320, 200)) for seed in (8, 9))
    for step in range(25):
        Image.blend(one, other, step / 24).save(empty / f"{step:02}.png")
    assert sift(empty, "--quiet", "--keep", "duplicate = 0") == 0
    assert len(kept(empty)) > 3, "neighbours alone are copies, the ends are not"
    why = "not duplicate = 0 (a copy of "
    copies = {row["why"].removeprefix(why)[:-1] for row in rows(empty, "left_out")}
    assert copies <= {*kept(empty)}


@pytest.mark.slow
def test_the_sharp_picture_is_kept_if_its_larger_copy_is_left_out_as_blurred(
    empty: Path, capsys: Said
) -> None:
    folder, words = empty, ("--keep", "blurred = 0 and duplicate = 0")
    scene = next(drawn(np.random.default_rng(8))).resize((600, 400))
    scene.save(folder / "sharp.png")
    large = scene.resize((1200, 800)).filter(ImageFilter.GaussianBlur(6))
    large.save(folder / "large.png")
    Image.new("RGB", (600, 400)).save(folder / "black.png")
    assert sift(folder, "--quiet", *words) == 0
    assert kept(folder) == ["sharp.png"]
    large_marks, sharp = (marks_of(folder)[name] for name in ("large.png", "sharp.png"))
    assert (large_marks["duplicate"], sharp["duplicate"]) == (0, 1)
    assert (large_marks["kept_duplicate"], sharp["kept_duplicate"]) == (None, 0)
    # What has no sharpness is left out, and the last line says so.
    assert rows(folder, "left_out")[0]["why"] == "not blurred = 0 (blurred null)"
    assert sift(folder, *words) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert "2 left out: 2 not blurred = 0; 1 as blurred is null (`or blurred is null` keeps" in last


@pytest.mark.slow
def test_what_a_person_chose_is_kept_and_belongs_to_its_content(folder: Path) -> None:
    scene = folder / "a" / "x.png"
    for name in ("copy", "third"):
        (folder / f"{name}.png").write_bytes(scene.read_bytes() + name.encode())
    with Image.open(scene) as picture:
        picture.filter(ImageFilter.GaussianBlur(8)).save(folder / "blurred.png")
    words = ["--quiet", "--keep", "duplicate = 0 and blurred = 0"]
    assert sift(folder, *words) == 0
    assert kept(folder) == ["a/x.png", "b/x.png"]
    marks = marks_of(folder)
    for name, choice in (("copy.png", "best"), ("blurred.png", "keep")):
        choose(folder.with_name("out"), marks[name]["path"], choice)
    assert sift(folder, *words) == 0
    assert kept(folder) == ["b/x.png", "blurred.png", "copy.png"]
    marks = marks_of(folder)
    assert [n for n, row in marks.items() if row["group"] and not row["duplicate"]] == ["copy.png"]
    with Image.open(folder / "copy.png") as picture:
        picture.save(folder / "copy.png", compress_level=1)
    assert sift(folder, *words) == 0
    assert kept(folder) == ["a/x.png", "b/x.png", "blurred.png"]


def test_a_choice_counts_if_it_is_known_and_its_file_is_there(folder: Path, capsys: Said) -> None:
    words = ["--keep", "duplicate = 0"]
    shutil.copy(folder / "a" / "x.png", folder / "b" / "y.png")  # an empty folder is away
    assert sift(folder, *words) == 0
    out = folder.with_name("out")
    marks = marks_of(folder)
    choose(out, marks["a/x.png"]["path"], "best")
    choose(out, marks["b/x.png"]["path"], "keep")
    (folder / "b" / "x.png").unlink()
    capsys.readouterr()
    assert sift(folder, *words) == 0
    told = "".join(capsys.readouterr())
    assert "1 choice of a person applied" in told and "1 of files that are gone" in told
    assert "any more: 1 row of 1 file that this run does not read (b/x.png)" in told
    with (out / "choices.jsonl").open("a") as file:
        file.write(json.dumps({"path": "p", "digest": "d", "choice": "worst"}) + "\n")
    assert sift(folder, *words) == 5
    assert "choices.jsonl cannot be read at line 3" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("mark", ["kept_duplicate", "kept_group"])
def test_a_condition_on_what_it_makes_fails(mark: str, folder: Path, capsys: Said) -> None:
    assert sift(folder, "--keep", f"{mark} = 0") == 2
    assert "--keep cannot be read" in capsys.readouterr().err
