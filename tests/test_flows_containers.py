"""Frames, thumbnails, clips and subtitles have the times and pixels that a player shows, for every
container with late tracks, gaps, turns and transparency."""

import io
import json
import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from artifacts.captions import WRITERS, Caption
from artifacts.errors import MediaError
from artifacts.schema import ChunkIndex, FrameFit, Sampling
from flows.cli.main import main
from flows.results.thumbnails import thumbnail
from stages.frames.clip_copy import ClipCutter
from stages.frames.video import Video
from tests.support.container_cells import (
    CELLS,
    CONTAINERS,
    EMPTY,
    FEATURES,
    Feature,
    chosen_times,
    packet_times,
    read_by_ffmpeg,
    write_cell,
)

EXACT, BY_PROGRAM = 0.001, 0.025
"""Seconds by which times may differ from those written, and from those of the program `ffmpeg`."""
REORDERED = 2
"""Most frames that x264 keeps back for reordering."""
EVERY_FRAME = Sampling(chunk_seconds=1, fps=25, max_frames=64)
QUICK = (
    ("mp4", "late video"),
    ("mp4", "edit list"),
    ("mov", "late sound"),
    ("mov", "rotation 90"),
    ("mov", "alpha"),
    ("mkv", "late video"),
    ("mkv", "rotation 180"),
    ("webm", "alpha"),
    ("ts", "late video"),
    ("flv", "variable rate"),
    ("avi", "B-frames"),
    ("avi", "gap"),
)
NO_CLIP = {("avi", feature) for feature in ("B-frames", "gap", "variable rate")}
"""H.264 in AVI has no times of display, without which no packets can be copied."""
Pixels = NDArray[np.uint8]


@pytest.fixture(autouse=True)
def _needs_ffmpeg() -> None:
    if shutil.which("ffmpeg") is None:
        pytest.skip("the program `ffmpeg` is missing: apt-get install ffmpeg")


def test_at_least_sixty_cells_are_written_and_each_empty_one_has_a_reason() -> None:
    assert len(CELLS) >= 60
    assert len(CELLS) + len(EMPTY) == len(CONTAINERS) * len(FEATURES)
    assert all(EMPTY.values())


@pytest.mark.parametrize(
    ("container", "feature"),
    [pytest.param(*cell, marks=[] if cell in QUICK else pytest.mark.slow) for cell in CELLS],
)
def test_times_and_pixels_are_those_of_a_player(
    tmp_path: Path, container: str, feature: str
) -> None:
    path = tmp_path / f"a.{CONTAINERS[container].suffix}"
    about = FEATURES[feature]
    write_cell(path, container, feature)
    times = expected_times(path, container, feature)
    shown_at, shown = read_by_ffmpeg(path, about)
    if container == "avi" and about.reordered:
        # The program shows these frames when they leave the decoder, which is later by the delay of
        # reordering, and guesses the times of the last ones, which leave it after all packets.
        shown_at = [*(at - shown_at[0] for at in shown_at[:-REORDERED]), *times[-REORDERED:]]
    assert shown_at == pytest.approx(times, abs=BY_PROGRAM)

    chunks = frames_are_right(path, times, shown)
    for at in (0, len(times) // 2, len(times) - 1):
        assert nearest(of_jpeg(thumbnail(path, times[at])), shown) == at, "thumbnail"
    first, behind = len(times) // 4, len(times) // 2
    cut = ClipCutter(path)
    if (container, feature) in NO_CLIP:
        with pytest.raises(MediaError, match="no presentation times"):
            cut.copy(times[first], times[behind], tmp_path / "clip")
    else:
        made = cut.copy(times[first], times[behind], tmp_path / "clip")
        seconds, pixels = read_by_ffmpeg(tmp_path / made["file"], Feature(alpha=about.alpha))
        inside = [p for s, p in zip(seconds, pixels, strict=True) if s > made["start"] - BY_PROGRAM]
        assert [nearest(p, shown) for p in inside] == list(range(first, behind)), "clip"
    subtitles_are_right(chunks, times)


def expected_times(path: Path, container: str, feature: str) -> list[float]:
    """Seconds of the frames by their packets, which are as chosen but for the delay of coders."""
    chosen = chosen_times(container, feature)
    if container == "avi":  # FFmpeg guesses the times of packets
        return chosen
    found = packet_times(path)
    assert found == pytest.approx(chosen, abs=0.1)
    return found


def frames_are_right(path: Path, times: list[float], shown: Pixels) -> list[ChunkIndex]:
    with Video(path) as video:
        chunks = list(video.chunks(video.plan(EVERY_FRAME), FrameFit()))
        index = video.media_index([chunk.index for chunk in chunks])
    assert index.warnings == ()
    assert index.start == pytest.approx(times[0], abs=EXACT)
    # A chunk in which no frame begins has the one on display again.
    found = {t: p for chunk in chunks for t, p in zip(chunk.index.times, chunk.pixels, strict=True)}
    assert list(found) == pytest.approx(times, abs=EXACT), "frames"
    pixels = np.stack(list(found.values()))
    assert pixels.shape == shown.shape
    away = np.abs(pixels.astype(int) - shown).mean(axis=(1, 2, 3))
    assert away.max() < 3, "frames"
    return [chunk.index for chunk in chunks]


def subtitles_are_right(chunks: list[ChunkIndex], times: list[float]) -> None:
    captions = [caption_of(chunk) for chunk in chunks]
    for form in ("srt", "vtt"):
        cues = cues_in("".join(WRITERS[form](captions)))
        assert cues[0][0] == pytest.approx(times[0], abs=EXACT)
        for (start, end), chunk in zip(cues, chunks, strict=True):
            own = [seconds for seconds in times if start - EXACT <= seconds < end - EXACT]
            assert own == pytest.approx(chunk.times, abs=EXACT) or len(chunk.times) == 1


def caption_of(chunk: ChunkIndex) -> Caption:
    return Caption(
        media_path="a",
        source="a",
        start=chunk.start,
        end=chunk.end,
        caption="a caption",
        model="",
        prompt="",
        precision={},
        frames=chunk.times,
        features="",
        tokens=1,
        ended="stop",
    )


def cues_in(text: str) -> list[tuple[float, float]]:
    found = re.findall(r"(\d+):(\d+):(\d+)[.,](\d+) --> (\d+):(\d+):(\d+)[.,](\d+)", text)
    return [(seconds_of(each[:4]), seconds_of(each[4:])) for each in found]


def seconds_of(parts: tuple[str, ...]) -> float:
    hours, minutes, seconds, milliseconds = map(int, parts)
    return hours * 3600 + minutes * 60 + seconds + milliseconds / 1000


def of_jpeg(data: bytes | None) -> Pixels:
    assert data is not None
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def nearest(pixels: Pixels, shown: Pixels) -> int:
    """Which of the shown frames this is."""
    assert pixels.shape == shown.shape[1:]
    away = np.abs(shown.astype(int) - pixels).mean(axis=(1, 2, 3))
    assert away.min() < 12
    return int(away.argmin())


@pytest.mark.slow
def test_data_sets_and_lists_know_where_a_late_track_begins(tmp_path: Path) -> None:
    path = write_cell(tmp_path / "a.mp4", "mp4", "late video")
    (begin, *_), store = packet_times(path), str(tmp_path / "store")
    out, model = tmp_path / "out", ["--model", "demo"]
    command = ["caption", str(path), *model, "--whole", "--format", "webdataset"]
    assert main([*command, "--out", str(out), "--store", store]) == 0
    (row,) = map(json.loads, (out / "captions.jsonl").read_text().splitlines())
    assert row["start"] == begin == 3.0
    (shard,) = (out / "webdataset").glob("*.tar")
    with tarfile.open(shard) as members:
        files = {Path(one.name).suffix: members.extractfile(one) for one in members}
        texts = {suffix: file.read() for suffix, file in files.items() if file is not None}
    assert texts[".mp4"] == path.read_bytes()
    assert json.loads(texts[".json"])["media_start"] == begin
    for start, code in ((begin, 0), (0.0, 2)):
        line = {"path": "a.mp4", "caption": "a bar", "start": start, "end": row["end"]}
        (tmp_path / "list.jsonl").write_text(json.dumps(line))
        tune = ["tune", str(tmp_path / "list.jsonl"), *model, "--steps", "1", "--validate", "0"]
        assert main([*tune, "--out", str(tmp_path / f"of-{code}"), "--store", store]) == code
