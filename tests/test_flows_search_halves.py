"""An index is searched by the model that made it alone: both halves, with tokenizer and
configuration, are compared for words and for pictures."""

import json
import shutil
from pathlib import Path

import pytest

from artifacts.index.manifest import read_manifest
from artifacts.index.snapshot import open_snapshot
from flows.cli.main import main
from tests.support.dual_encoders import save_clip
from tests.support.embedding import write_pictures

Said = pytest.CaptureFixture[str]
BEFORE = Path(__file__).parent / "data" / "index_before"
"""Pictures, an index that the version before this comparison built of them by
`penstock index build media --model demo --precision fp32`, and what it found for WORDS."""
WORDS = ("a photo of a red square", "green circle")


def before(place: Path) -> Path:
    shutil.copytree(BEFORE, place, dirs_exist_ok=True)
    return place / "index"


def test_an_index_without_the_digest_finds_the_same_hits_with_one_warning(
    tmp_path: Path, capsys: Said
) -> None:
    index = before(tmp_path)
    where = ["--index", str(index), "--store", str(tmp_path / "store"), "--json"]
    assert main(["search", WORDS[0], "--not", WORDS[1], *where]) == 0
    out, err = capsys.readouterr()
    known = [json.loads(line) for line in (BEFORE / "hits.jsonl").read_text().splitlines()]
    of_red = {hit["media_path"]: hit for hit in known[:5]}
    hits = [json.loads(line) for line in out.splitlines()]
    near = pytest.approx(of_red["red.png"]["score"], abs=1e-4)
    assert hits and hits[0] == {**of_red["red.png"], "score": near}
    assert err.count("\n") == 1 and f"penstock index add SOURCES --index {index}" in err


@pytest.mark.slow
def test_adding_again_records_the_digest_once_and_changes_no_row(
    tmp_path: Path, capsys: Said
) -> None:
    index = before(tmp_path)
    where = ["--index", str(index), "--store", str(tmp_path / "store")]
    rows = open_snapshot(index).rows
    assert read_manifest(index).maker.text_half is None
    add = ["index", "add", str(tmp_path / "media" / "red.png"), *where, "--quiet"]
    assert main(add) == 0
    manifest = read_manifest(index)
    assert manifest.maker.text_half and manifest.live_rows == rows + 1  # under another path
    assert main(add) == 0
    assert read_manifest(index) == manifest
    capsys.readouterr()
    assert main(["search", WORDS[1], *where]) == 0
    out, err = capsys.readouterr()
    assert "green.png" in out.splitlines()[0] and err == ""


@pytest.mark.slow
def test_words_read_by_another_model_of_the_same_width_are_refused(
    tmp_path: Path, capsys: Said
) -> None:
    (tmp_path / "media").mkdir()
    write_pictures(tmp_path / "media")
    clip = save_clip(tmp_path / "clip")
    other = save_clip(tmp_path / "other", num_hidden_layers=1)
    store = ["--store", str(tmp_path / "store")]
    index = str(tmp_path / "index")
    build = ["index", "build", str(tmp_path / "media"), "--model", str(clip), "--out", index]
    assert main([*build, *store, "--quiet"]) == 0
    capsys.readouterr()
    assert main(["search", "a dog<eos>", "--index", index, "--model", str(other), *store]) == 2
    err = capsys.readouterr().err
    assert "are not those that it was made with" in err and err.count("\n") == 1
