"""Timecode and time of creation of files in rows and cues."""

import json
from collections.abc import Iterable
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


def test_rows_and_cues_have_the_clock_of_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
    assert main(films) == 0
    assert "had times by --clock wall" in capsys.readouterr().err
    assert (tmp_path / "out" / "a.vtt").read_text().splitlines()[2].startswith("00:00:00.000")


def _frames(label: str, rate: str) -> int:
    """Labels since midnight, without those that drop frame leaves out."""
    hours, minutes, seconds, frames = (int(label[at : at + 2]) for at in (0, 3, 6, 9))
    nominal, minutes = round(Fraction(rate)), 60 * hours + minutes
    dropped = nominal // 15 * (minutes - minutes // 10) if label[8] == ";" else 0
    return (60 * minutes + seconds) * nominal + frames - dropped


def captioned(path: Path, tmp_path: Path, clock: str) -> dict[str, Any]:
    """The row of one chunk with the times of its cue."""
    words = ["--model", "demo", "--store", str(tmp_path / "store"), "--out", str(tmp_path / "out")]
    options = ["--format", "vtt", "--clock", clock, "--quiet", "--chunk", "600", "--replace"]
    assert main(["caption", str(path), *words, *options]) == 0
    (row,) = map(json.loads, (tmp_path / "out/captions.jsonl").read_text().splitlines())
    cue = (tmp_path / "out" / path.name).with_suffix(".vtt").read_text().splitlines()[2]
    return {**row, "cue": cue}


def write_small(
    path: Path, rate: Fraction, times: Iterable[int], codec: str = "libx264", **metadata: str
) -> None:
    """A picture at these frames of a film of constant rate."""
    options = {"movflags": "use_metadata_tags"}
    with av.open(str(path), "w", container_options=options) as container:
        container.metadata.update(metadata)
        stream: Any = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.metadata.update({k: v for k, v in metadata.items() if k == "timecode"})
        for time in times:
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.mark.parametrize("name", ["missing.mov", "missing.mkv"])
def test_labels_count_on_where_frames_are_missing(name: str, tmp_path: Path) -> None:
    rate, path = Fraction(30000, 1001), tmp_path / name
    write_small(path, rate, (at for at in range(1800) if at % 9 != 4), timecode="00:00:30;00")
    row = captioned(path, tmp_path, "timecode")
    start, _, end = row["cue"].partition(" --> ")
    later = round(row["end"] * rate) + 2  # drop frame leaves out two labels of minute 1
    seconds, frames = divmod(later, 30)
    assert (start, row["timecode"]) == ("00:00:30.000", "00:00:30;00")
    assert end == f"00:01:{seconds - 30:02d}.{round(1000 * frames / 30):03d}", row["end"]


def test_the_wall_clock_of_a_phone_is_that_of_its_time_zone(tmp_path: Path) -> None:
    path, local = tmp_path / "phone.mov", "2026-06-01T00:30:00+0200"
    write_small(
        path,
        Fraction(25),
        range(50),
        creation_time="2026-05-31T22:30:00Z",
        **{"com.apple.quicktime.creationdate": local},
    )
    row = captioned(path, tmp_path, "wall")
    assert row["recorded"] == "2026-06-01T00:30:00.000+02:00"
    assert row["cue"] == "00:30:00.000 --> 00:30:02.000"


@pytest.mark.parametrize("never", ["1904-01-01T00:00:00Z", "1970-01-01T00:00:00Z"])
def test_a_clock_that_was_never_set_is_none(never: str, tmp_path: Path) -> None:
    path = tmp_path / "unset.mkv"
    write_small(path, Fraction(25), range(25), creation_time=never)
    row = captioned(path, tmp_path, "wall")
    assert "recorded" not in row and "states no time of creation" in row["warnings"][0]


def test_a_time_at_the_end_of_the_calendar_ends_no_run(tmp_path: Path) -> None:
    path = tmp_path / "hostile.nut"
    write_small(path, Fraction(25), range(50), creation_time="9999-12-31T23:59:59Z")
    words = ["--model", "demo", "--store", str(tmp_path / "store"), "--out", str(tmp_path / "out")]
    assert main(["caption", str(path), *words, "--chunk", "1", "--quiet"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out/captions.jsonl").read_text().splitlines()]
    assert [row.get("recorded") for row in rows] == ["9999-12-31T23:59:59.000+00:00", None]


def test_a_file_without_the_clock_says_so(tmp_path: Path) -> None:
    path = tmp_path / "plain.mp4"
    write_small(path, Fraction(10), range(10))
    row = captioned(path, tmp_path, "timecode")
    assert row["warnings"] == ["the file states no timecode: cues count from its start"]
    assert "timecode" not in row


def test_an_unknown_clock_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["caption", ".", "--model", "demo", "--clock", "moon"]) == 2
    assert "start, timecode" in capsys.readouterr().err
