"""What `penstock sift` writes and prints: lists that keep names, tables, JSON, and errors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks._planted import drawn
from flows.cli.main import main
from flows.media.media_files import MediaFile, Selection
from flows.media.sources import find_media
from flows.running import sift as running
from tests.support.pipeline import read_lines


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
    assert {file.media_path for file in found(tmp_path / "list.jsonl")} == {
        "x.png",
        "a/x.png",
        "b/x.png",
    }


def test_whole_numbers_are_whole_in_tables(folder: Path) -> None:
    assert sift(folder, "--quiet", "--format", "parquet") == 0
    import pyarrow.parquet as pq

    schema = pq.read_schema(folder.with_name("out") / "marks.parquet")
    types = {name: str(schema.field(name).type) for name in schema.names}
    assert {types[n] for n in ("width", "faults", "duplicate", "group", "blurred")} == {"int64"}
    assert {types[n] for n in ("sharpness", "motion", "seconds")} == {"double"}
    assert sift(folder, "--quiet", "--keep", "width > 100.5 and faults in (0, 0.5)") == 0
    assert len(read_lines(folder.with_name("out") / "kept.jsonl")) == 2


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
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sift(folder, "--keep", name) == sift(folder, "--keep", name, "--dry-run") == 2
    assert capsys.readouterr().err.count("without --similar") == 2


def test_errors_name_the_option_and_command_at_fault(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["caption", str(folder), "--model", "demo", "--out", str(folder.with_name("o"))]
    assert main([*words, "--sift", "sharp > 3"]) == 2
    assert "--keep" not in (error := capsys.readouterr().err) and "--sift cannot be read" in error
    assert main([*words, "--sift", "duplicates = 0"]) == 2
    assert "(did you mean duplicate?)" in capsys.readouterr().err
    assert main(["sift"]) == 2
    assert "caption" not in capsys.readouterr().err


def test_a_run_that_is_stopped_says_how_its_tables_are_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "_run", stop)
    assert sift(folder, "--keep", "blurred = 0") == 4
    error = capsys.readouterr().err
    assert "no table is written yet" in error and "--keep 'blurred = 0'" in error


def test_json_is_printed_where_it_is_asked_for(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sift(folder, "--json", "--dry-run") == 0
    assert json.loads(capsys.readouterr().out) == {"files": 2, "contents": 2, "to_mark": 2}
    assert main(["sift", "--marks", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["blurred"]["range"] == "0, 1"
    assert sift(folder, "--json") == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    labels = [event["label"] for event in events if event["event"] == "item"]
    assert labels == ["x.png", "x.png"]
