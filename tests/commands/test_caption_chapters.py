"""Chunks that end where the chapters of a file do."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from flows.interfaces.cli.main import main

CHAPTERS = ((0.0, 2.5), (2.5, 3.0), (3.0, 6.0), (6.0, 90.0))
"""The last one ends after the file."""


def write(
    path: Path, chapters: tuple[tuple[float, float], ...], seconds: int = 8, begun: int = 0
) -> None:
    """A film whose clock shows so many seconds when it begins."""
    with av.open(str(path), "w") as container:
        container.set_chapters(
            [
                {
                    "id": at,
                    "start": round(1000 * start),
                    "end": round(1000 * end),
                    "time_base": Fraction(1, 1000),
                    "metadata": {"title": f"chapter {at}"},
                }
                for at, (start, end) in enumerate(chapters)
            ]
        )
        stream: Any = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for at in range(10 * seconds):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 2 * at, np.uint8), "rgb24")
            frame.pts, frame.time_base = 10 * begun + at, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def captioned(tmp_path: Path, *options: str) -> dict[str, list[tuple[float, float]]]:
    words = ["--model", "demo", "--store", str(tmp_path / "store"), "--out", str(tmp_path / "out")]
    assert main(["caption", str(tmp_path / "films"), *words, "--quiet", *options]) == 0
    rows = map(json.loads, (tmp_path / "out/captions.jsonl").read_text().splitlines())
    spans = dict[str, list[tuple[float, float]]]()
    for row in rows:
        spans.setdefault(row["media_path"], []).append((row["start"], row["end"]))
    return spans


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
def test_chunks_end_with_chapters(tmp_path: Path, suffix: str, capsys: Any) -> None:
    (tmp_path / "films").mkdir()
    write(tmp_path / "films" / f"film.{suffix}", CHAPTERS)
    write(tmp_path / "films" / f"plain.{suffix}", ())
    spans = captioned(tmp_path, "--chapters", "--chunk", "2")
    assert spans[f"plain.{suffix}"] == [(0, 2), (2, 4), (4, 6), (6, 8)]
    expected = [(0, 2), (2, 2.5), (2.5, 3), (3, 5), (5, 6), (6, 8)]
    assert np.allclose(spans[f"film.{suffix}"], expected, atol=0.11)
    capsys.readouterr()
    words = ["--model", "demo", "--store", str(tmp_path / "other"), "--chapters", "--chunk", "2"]
    assert main(["plan", str(tmp_path / "films"), *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["chunks"] == 10
    spans = captioned(tmp_path, "--chapters", "--clip-frames", "20", "--clip-fps", "10")
    assert np.allclose(spans[f"film.{suffix}"], [(0, 2), (3, 5), (6, 8)], atol=0.11)


def test_chapters_exclude_shots(capsys: Any) -> None:
    assert main(["caption", ".", "--model", "demo", "--chapters", "--shots"]) == 2
    assert "--shots" in capsys.readouterr().err


def test_chapters_count_from_the_same_zero_as_the_frames(tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    write(tmp_path / "films" / "clock.mkv", ((103.0, 106.0),), begun=100)
    write(tmp_path / "films" / "moved.mkv", ((0.0, 3.0), (3.0, 6.0)), begun=100)
    spans = captioned(tmp_path, "--chapters")
    for name in ("clock.mkv", "moved.mkv"):
        assert np.allclose(spans[name], [(0, 3), (3, 6), (6, 8)], atol=0.11), name
