"""Timecode and time of creation of files in rows and cues."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from flows.interfaces.cli.main import main

CASES = (
    ("a.mov", "libx264", "30000/1001", "01:02:03;04"),
    ("b.mov", "libx264", "24000/1001", "10:00:00:00"),
    ("c.mp4", "libx264", "60000/1001", "00:59:59;30"),
    ("d.mp4", "libx264", "25", "09:08:07:06"),
    ("e.mxf", "mpeg2video", "30000/1001", "01:02:03:04"),
    ("f.mxf", "mpeg2video", "25", "00:00:10:00"),
    ("g.mkv", "libx264", "30000/1001", "23:59:59;29"),
    ("h.mkv", "libx264", "25", "12:00:00:24"),
    ("i.ts", "mpeg2video", "25", "10:00:00:00"),
)
DAY = 2_589_408
"""Labels of a day in drop frame at 29.97."""
CREATED = "2026-03-29T23:59:59.000000Z"


def write(path: Path, codec: str, rate: str, label: str) -> None:
    """Two seconds of a picture."""
    with av.open(str(path), "w") as container:
        container.metadata["creation_time"] = CREATED
        options = {"gop_timecode": label} if path.suffix == ".ts" else {}
        stream: Any = container.add_stream(codec, rate=Fraction(rate), options=options)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        stream.metadata["timecode"] = label
        container.metadata["timecode"] = label
        for at in range(round(2 * Fraction(rate))):
            pixels = np.full((96, 128, 3), 40 + at, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_rows_and_cues_have_the_clock_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    for name, codec, rate, label in CASES:
        write(tmp_path / "films" / name, codec, rate, label)
    words = ["--model", "demo", "--store", str(tmp_path / "store"), "--out", str(tmp_path / "out")]
    films = ["caption", str(tmp_path / "films"), *words, "--chunk", "1", "--format", "vtt,srt"]
    assert main([*films, "--clock", "timecode", "--quiet"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out/captions.jsonl").read_text().splitlines()]
    for name, _, rate, started in CASES:
        first, second = (row for row in rows if row["media_path"] == name)
        if name != "i.ts":  # its encoder numbers the first header 0 or 1, as ffprobe shows, too
            assert first["timecode"] == started, name
        label = first["timecode"]
        assert _frames(label, rate) - _frames(started, rate) in (0, 1)
        later = _frames(second["timecode"], rate) - _frames(label, rate)
        assert (later % DAY if later < 0 else later) == round(Fraction(rate))
        hours, frame = label[:8], int(label[-2:])
        seconds = frame / round(Fraction(rate))
        cue = (tmp_path / "out" / name).with_suffix(".vtt").read_text().splitlines()[2]
        assert cue.startswith(f"{hours}.{round(seconds * 1000):03d} --> "), (name, cue)
    assert main([*films, "--clock", "wall", "--quiet"]) == 0
    cues = (tmp_path / "out" / "a.srt").read_text()
    assert "23:59:59,000 --> 24:00:00,000" in cues and "24:00:00,000 --> 24:00:0" in cues
    assert main([*films, "--quiet"]) == 0
    assert (tmp_path / "out" / "a.vtt").read_text().splitlines()[2].startswith("00:00:00.000")


def _frames(label: str, rate: str) -> int:
    """Labels since midnight, without those that drop frame leaves out."""
    hours, minutes, seconds, frames = (int(label[at : at + 2]) for at in (0, 3, 6, 9))
    nominal, minutes = round(Fraction(rate)), 60 * hours + minutes
    dropped = nominal // 15 * (minutes - minutes // 10) if label[8] == ";" else 0
    return (60 * minutes + seconds) * nominal + frames - dropped


def test_a_file_without_the_clock_says_so(tmp_path: Path) -> None:
    path = tmp_path / "plain.mp4"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(10):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    words = ["--model", "demo", "--store", str(tmp_path / "store"), "--out", str(tmp_path / "out")]
    options = ["--format", "vtt", "--clock", "timecode", "--quiet"]
    assert main(["caption", str(path), *words, *options]) == 0
    (row,) = map(json.loads, (tmp_path / "out/captions.jsonl").read_text().splitlines())
    assert row["warnings"] == ["the file states no timecode: cues count from its start"]
    assert "timecode" not in row


def test_an_unknown_clock_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["caption", ".", "--model", "demo", "--clock", "moon"]) == 2
    assert "start, timecode" in capsys.readouterr().err
