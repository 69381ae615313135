"""Stretches copied out of videos hold the very frames that the video has there."""

from pathlib import Path
from typing import Any

import av
import pytest

from artifacts.errors import EnvironmentFault, MediaError
from stages.frames import clip_copy
from stages.frames.clip_copy import ClipCutter
from stages.frames.cut import run as run_cut
from tests.support.media import decode_plainly, write_video
from tests.support.waves import told_by


def check(path: Path, folder: Path, start: float, end: float) -> dict[str, Any]:
    """Copy a stretch and compare each frame that begins in it with the one of the video."""
    made = ClipCutter(path).copy(start, end, folder / "cut")
    expected = [f for f in decode_plainly(path) if start - 1e-6 <= f.seconds < end - 1e-6]
    found = decode_plainly(folder / made["file"])
    at = made["start"] - 1e-3
    here = [f for f in found if at <= f.seconds < made["start"] + end - start - 1e-3]
    assert [f.digest for f in here] == [f.digest for f in expected]
    shifts = {round(f.seconds - w.seconds, 2) for f, w in zip(here, expected, strict=True)}
    assert len(shifts) <= 1 and shifts <= {round(made["start"] - start, 2)}
    assert found[0].seconds == 0.0
    if expected and made["file"].endswith(".mp4"):
        assert found[-1].digest == expected[-1].digest, "frames behind the end are hidden"
    return made


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.7, 2.9), (3.99, 4.0)])
def test_a_stretch_holds_the_frames_of_its_time(tmp_path: Path, start: float, end: float) -> None:
    path = write_video(tmp_path / "a.mp4", ticks=range(120), gop=20, audio=True)
    made = check(path, tmp_path, start, end)
    assert made["start"] < 1 / 30  # and not at the keyframe
    with av.open(str(tmp_path / made["file"])) as container:
        assert [stream.type for stream in container.streams] == ["video"]


def test_frames_far_before_a_stretch_are_hidden(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", ticks=range(300), gop=500)
    made = check(path, tmp_path, 8.0, 9.0)
    assert made == {"file": "cut.mp4", "start": 0.0}


@pytest.mark.parametrize(
    ("name", "codec", "suffix"),
    [
        ("a.mkv", "libx264", "mp4"),
        ("a.ts", "libx264", "mp4"),
        ("a.webm", "libvpx-vp9", "mp4"),
        ("a.webm", "libvpx", "mkv"),
        ("a.mp4", "libsvtav1", "mp4"),
        ("a.avi", "mpeg4", "mp4"),
        ("a.mov", "mjpeg", "mp4"),
        ("a.wmv", "wmv2", "wmv"),
        ("a.mpg", "mpeg2video", "mp4"),
    ],
)
def test_a_stretch_can_be_had_of_every_kind_of_file(
    tmp_path: Path, name: str, codec: str, suffix: str
) -> None:
    path = write_video(tmp_path / name, ticks=range(60), codec=codec, gop=10, size=(64, 64))
    made = check(path, tmp_path, 0.7, 1.5)
    assert made["file"] == f"cut.{suffix}"


def test_frames_before_a_keyframe_that_lean_on_earlier_ones_are_left_out(tmp_path: Path) -> None:
    options = {"bf": "3", "x264-params": "open-gop=1:scenecut=0"}
    path = write_video(tmp_path / "a.mkv", ticks=range(120), options=options)
    for start in (0.4, 0.5, 1.3):
        check(path, tmp_path, start, start + 1.4)


def test_what_no_container_can_describe_is_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", ticks=range(60), codec="rawvideo")
    with pytest.raises(MediaError, match="no container accepts its packets"):
        ClipCutter(path).copy(0.5, 1.0, tmp_path / "cut")
    assert [p.name for p in tmp_path.iterdir()] == ["a.avi"]


def test_times_that_vary_and_start_late_are_kept(tmp_path: Path) -> None:
    ticks = [100 + t for t in (0, 1, 2, 10, 11, 30, 31, 32, 60, 61, 62, 80, 81)]
    path = write_video(tmp_path / "a.mkv", ticks=ticks, gop=4)
    check(path, tmp_path, 1.0, 2.1)


def test_a_turned_video_stays_turned(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", ticks=range(60), rotation=90, gop=10)
    made = check(path, tmp_path, 1.0, 1.5)
    with av.open(str(tmp_path / made["file"])) as container:
        assert next(container.decode(video=0)).rotation == 90


def test_a_video_of_one_keyframe_is_not_copied_over_and_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "a.mp4", ticks=range(120), gop=500)
    monkeypatch.setattr(clip_copy, "LEAD_SECONDS", 2.0)
    check(path, tmp_path, 1.9, 2.5)
    with pytest.raises(MediaError, match=r"the nearest keyframe is 3 s before 3\.0 s"):
        ClipCutter(path).copy(3.0, 4.0, tmp_path / "cut")


def test_the_stage_tells_what_became_of_each(tmp_path: Path) -> None:
    good = write_video(tmp_path / "good.mp4", ticks=range(60), gop=10)
    whole = write_video(tmp_path / "whole.mp4", ticks=range(60), gop=10)
    (tmp_path / "half.mp4").write_bytes(whole.read_bytes()[:900])
    spans = [(good, "a", 0.0, 1.0), (good, "b", 1.0, 2.0), (tmp_path / "half.mp4", "c", 0.0, 1.0)]
    cuts = [[str(path), *more] for path, *more in spans]
    message = told_by(run_cut, {"folder": str(tmp_path), "cuts": cuts})
    notes = {
        k: v for e in message if e["event"] == "StageNotes" for k, v in e.items() if k != "event"
    }
    assert notes["a"] == {"file": "a.mp4", "start": 0.0}
    assert notes["b"]["file"] == "b.mp4" and (tmp_path / "b.mp4").exists()
    assert "no moov atom" in notes["c"]["error"] and str(tmp_path) not in notes["c"]["error"]
    assert [e["key"] for e in message if e["event"] == "Item"] == ["a", "b"]


def test_a_file_that_is_gone_is_no_fault_of_its_own(tmp_path: Path) -> None:
    gone = [str(tmp_path / "gone.mp4"), "a", 0.0, 1.0]
    with pytest.raises(EnvironmentFault, match="does not exist"):
        told_by(run_cut, {"folder": str(tmp_path), "cuts": [gone]})


def test_real_files_are_cut_whole(shared_clips: Path, tmp_path: Path) -> None:
    for name in ("gr_badcont.mkv", "intel_asl_book.mkv", "decord_rot90.mov", "mpy_nodur.webm"):
        check(shared_clips / name, tmp_path, 0.05, 1.4)
