"""Names of the tracks of chapters, and what happens to files that have such a name."""

import json
import shutil
from pathlib import Path

import pytest

from flows.interfaces.cli.main import main
from flows.outputs.chapter_tracks import track_paths
from penstock_demo import CLIPS

MINE = "WEBVTT\n\n00:00.000 --> 00:01.000\nMine\n"


def test_no_track_has_the_name_of_a_text() -> None:
    assert track_paths(["/o/x", "/o/y"]) == {
        "/o/x": "/o/x.chapters.vtt",
        "/o/y": "/o/y.chapters.vtt",
    }
    assert track_paths(["/o/x", "/o/X.Chapters", "/o/x-2"]) == {
        "/o/x": "/o/x-3.chapters.vtt",
        "/o/X.Chapters": "/o/X.Chapters.chapters.vtt",
        "/o/x-2": "/o/x-2.chapters.vtt",
    }


@pytest.mark.slow
def test_a_text_takes_its_name_from_an_earlier_track(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (media := tmp_path / "media").mkdir()
    shutil.copy(CLIPS / "clip-02.mp4", media / "x.mp4")
    out = tmp_path / "out"
    words = ["caption", str(media), "--model", "demo", "--out", str(out), "--chunk", "1"]
    words += ["--summary", "--format", "vtt"]
    assert main(words) == 0
    track = (out / "x.chapters.vtt").read_text()
    shutil.copy(CLIPS / "clip-03.mp4", media / "x.chapters.mp4")
    assert main(words) == 0
    assert (out / "x-2.chapters.vtt").read_text() == track
    rows = map(json.loads, (out / "captions.jsonl").read_text().splitlines())
    first = next(row["caption"] for row in rows if row["media_path"] == "x.chapters.mp4")
    assert first in (out / "x.chapters.vtt").read_text()
    capsys.readouterr()
    (out / "x-2.chapters.vtt").write_text(MINE)
    assert main(words) == 0
    assert (out / "x-2.chapters.vtt").read_text() == MINE
    assert "kept 1 track of chapters that users wrote or edited (x-2.chapters.vtt)" in (
        capsys.readouterr().err
    )
    assert main([*words, "--overwrite"]) == 0
    assert (out / "x-2.chapters.vtt").read_text() == track
