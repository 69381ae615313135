"""Media files are opened with arguments that every PyAV of the lock accepts."""

from pathlib import Path

import av
import av.logging
import pytest

from artifacts.containers import open_arguments, open_media
from stages.frames.video import Video
from tests.support.media import write_video


@pytest.mark.parametrize(("version", "taken"), [("18.1.0", True), ("19.0.2", False)])
def test_only_the_older_pyav_is_given_the_encoding_of_metadata(version: str, taken: bool) -> None:
    given = open_arguments(version, mode="r", format=None, options={})
    assert {"mode", "format", "options"} <= given.keys()
    assert ("metadata_errors" in given) is taken


def test_a_title_in_latin_1_does_not_keep_a_video_from_being_read(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", container_options={})
    with av.open(str(path)) as source, av.open(str(tmp_path / "b.mkv"), "w") as titled:
        copied = titled.add_stream_from_template(source.streams.video[0])
        titled.metadata["title"] = "Fluss XY"
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = copied
                titled.mux(packet)
    data = (tmp_path / "b.mkv").read_bytes()
    assert data.count(b"Fluss XY") == 1
    (tmp_path / "c.mkv").write_bytes(data.replace(b"Fluss XY", "Flüße XY".encode("latin-1")))
    with open_media(tmp_path / "c.mkv") as container:
        assert "XY" in container.metadata["title"]
    with Video(tmp_path / "c.mkv") as video:
        assert video.duration > 0


def test_an_open_container_sends_no_message_of_ffmpeg_through_python(tmp_path: Path) -> None:
    """As after importing torchvision 0.24, whose level makes a process hang for good."""
    path = write_video(tmp_path / "a.mp4")
    av.logging.set_level(av.logging.ERROR)
    with open_media(path):
        assert av.logging.get_level() is None
    av.logging.set_level(av.logging.ERROR)
    with Video(path) as video:
        assert av.logging.get_level() is None and video.duration > 0
