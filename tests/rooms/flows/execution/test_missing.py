"""Items of the sources that end with neither a row nor a failure: they are made once more, or named
by a run that has failed. The store loses them here: it says of one record that another wrote it."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyarrow.parquet import read_table

from artifacts.records.packs import Record, RecordSet
from flows.interfaces.cli.main import main
from flows.outputs.write import missing_error
from tests.support.builders.clip import save_clip
from tests.support.inside import stages_inside
from tests.support.pipeline import read_lines

PICTURES = ("a.png", "b.png", "c.png")
EVER = 1000
KINDS = {"caption": "captions", "sift": "marks", "tune": "features"}
KINDS |= dict.fromkeys(("embed", "label", "index"), "embeddings")
"""Command → kind of its last records of media."""
WITH_ROWS = {"caption", "embed", "label", "sift"}
"""Commands whose outputs name the file of each row."""
SLOW = [pytest.param(verb, marks=pytest.mark.slow) for verb in KINDS if verb != "sift"]
"""All that load models."""


Lose = Callable[[str, int], None]


@pytest.fixture
def lose(monkeypatch: pytest.MonkeyPatch) -> Lose:
    """Let the store lose the record that is first published of a kind, so many times."""

    def lose(kind: str, times: int) -> None:
        publish, lost = RecordSet.publish, ""

        def lossy(record_set: RecordSet, records: Sequence[Record]) -> list[str]:
            nonlocal lost, times
            if records and record_set.folder.split("/")[0] == kind and times:
                lost, count = lost or records[0].key, len(records)
                records = [record for record in records if record.key != lost]
                times -= len(records) < count
            return publish(record_set, records)

        monkeypatch.setattr(RecordSet, "publish", lossy)

    return lose


@pytest.fixture(autouse=True)
def stages_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    stages_inside(monkeypatch)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Three pictures of noise, and a caption of each."""
    (tmp_path / "media").mkdir()
    draw = np.random.default_rng(3)
    for name in PICTURES:
        pixels = draw.integers(0, 255, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "media" / name)
    lines = [{"path": f"media/{name}", "caption": f"Noise {name}."} for name in PICTURES]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def run(verb: str, place: Path, clip: Path, *more: str) -> int:
    media, where = str(place / "media"), ["--store", str(place / "store"), *more]
    where += ["--out", str(place / "out")]
    if verb == "sift":
        return main(["sift", media, *where])
    if verb == "caption":
        return main(["caption", media, "--model", "demo", "--max-new-tokens", "4", *where])
    if verb == "tune":
        options = ["--steps", "1", "--validate", "0", "--batch-size", "2"]
        return main(["tune", str(place / "data.jsonl"), "--model", "demo", *options, *where])
    (place / "templates.txt").write_text("{} in a photo\n")
    labels = ["--labels", "cat,dog", "--templates", str(place / "templates.txt")]
    words = ["index", "build"] if verb == "index" else [verb]
    return main([*words, media, "--model", str(clip), *(labels if verb == "label" else []), *where])


def rows(verb: str, out: Path) -> list[str]:
    """The pictures that the output has rows of."""
    if verb == "embed":
        return list(read_table(out / "embeddings.parquet")["media_path"].to_pylist())
    file = {"caption": "captions.jsonl", "label": "labels.jsonl", "sift": "marks.jsonl"}[verb]
    return [row["media_path"] for row in read_lines(out / file)]


@pytest.mark.parametrize("verb", ["sift", *SLOW])
def test_an_item_that_is_lost_again_and_again_is_named(
    verb: str, place: Path, clip: Path, lose: Lose, capfd: pytest.CaptureFixture[str]
) -> None:
    lose(KINDS[verb], EVER)
    code, printed = run(verb, place, clip), capfd.readouterr().err
    assert code == 5, f"exit code {code}: {printed.splitlines()[-1]}"
    (lost,) = (name for name in PICTURES if f"for 1 item of {name}, which" in printed)
    assert "neither a row nor a failure in" in printed and "Traceback" not in printed
    if verb in WITH_ROWS - {"sift"}:  # which writes tables of all files or none
        assert sorted(rows(verb, place / "out")) == [name for name in PICTURES if name != lost]


@pytest.mark.parametrize("verb", ["sift", *SLOW])
def test_an_item_that_is_lost_twice_is_made_once_more(
    verb: str, place: Path, clip: Path, lose: Lose, capfd: pytest.CaptureFixture[str]
) -> None:
    lose(KINDS[verb], 2)
    code = run(verb, place, clip)
    printed = "".join(capfd.readouterr())
    if verb in WITH_ROWS:
        assert sorted(rows(verb, place / "out")) == [*PICTURES], f"exit code {code}"
    assert code == 0, printed
    assert verb == "sift" or "neither a row nor a failure for 1 item of" in printed
    assert verb != "index" or "3 rows in" in printed


def test_at_most_ten_files_are_named() -> None:
    error = missing_error(Path("out"), {f"{number:02}.png": 2 for number in range(13)})
    assert error.exit_code == 5 and "for 26 items of 00.png, 01.png" in error.message
    assert "09.png and 3 more, which" in error.message and "10.png" not in error.message
