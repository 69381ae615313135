"""Files that name other files, dressed up as videos and pictures: none is opened, and none is
captioned as what it names."""

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifacts.errors import MediaError
from artifacts.schema import FrameFit, Sampling
from flows.media.media_files import IMAGE_SUFFIXES
from stages.frames.formats import check_file
from stages.frames.image import read_image
from stages.frames.video import Video
from tests.support.attacks import attacked, seeded
from tests.support.media import write_video

pytestmark = pytest.mark.slow

HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{0}\n#EXT-X-ENDLIST\n"
TEXTS = {
    "hls": HLS,
    "hls master": "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{0}\n",
    "hls map": '#EXTM3U\n#EXT-X-MAP:URI="{0}"\n#EXTINF:1,\n{0}\n#EXT-X-ENDLIST\n',
    "hls key": '#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="{0}"\n#EXTINF:1,\n{0}\n#EXT-X-ENDLIST\n',
    "hls behind a mark": "\ufeff" + HLS,
    "hls behind lines": "\n\n  " + HLS,
    "concat": "ffconcat version 1.0\nfile {0}\n",
    "concat quoted": "ffconcat version 1.0\nfile '{0}'\nduration 5\n",
    "concat unsafe": "ffconcat version 1.0\noption safe 0\nfile '{0}'\n",
    "concat plain": "file '{0}'\nfile '{0}'\n",
    "dash": '<?xml version="1.0"?><MPD type="static" '
    'profiles="urn:mpeg:dash:profile:isoff-main:2011"><Period><AdaptationSet>'
    '<Representation id="0" bandwidth="1"><BaseURL>{0}</BaseURL></Representation>'
    "</AdaptationSet></Period></MPD>",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5 RTP/AVP 96\n",
    "imf": '<?xml version="1.0"?><CompositionPlaylist '
    'xmlns="http://www.smpte-ra.org/schemas/2067-3/2016"><Id>{0}</Id></CompositionPlaylist>',
    "asx": '<asx version="3.0"><entry><ref href="{0}"/></entry></asx>',
    "pls": "[playlist]\nFile1={0}\nNumberOfEntries=1\n",
    "xspf": '<?xml version="1.0"?><playlist xmlns="http://xspf.org/ns/0/"><trackList><track>'
    "<location>{0}</location></track></trackList></playlist>",
    "smil": "<smil><body><video src='{0}'/></body></smil>",
    "real": "{0}\n",
    "rtsp": "rtsptext\n{0}\n",
    "metadata": ";FFMETADATA1\ntitle={0}\n",
    "svg": '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    '<image xlink:href="{0}" width="64" height="48"/></svg>',
    "avisynth": 'AVISource("{0}")\n',
    "lavfi": "movie={0}\n",
    "eps": "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n({0}) run\nshowpage\n",
    "vobsub": "# VobSub index file, v7\nsize: 64x48\ntimestamp: 00:00:00:000, filepos: 000000000\n",
}
FIT = FrameFit()
SAMPLING = Sampling(chunk_seconds=30, fps=1, max_frames=4)
NAMES = ("clip.mp4", "list.m3u8", "clip.jpg")
TARGETS = ("real.ts", "{folder}/real.ts", "file://{folder}/real.ts", "http://127.0.0.1:{port}/a.ts")


@pytest.fixture(scope="module")
def visited() -> Iterator[tuple[int, list[bytes]]]:
    """A port of this machine, and what was asked of it."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen() -> None:
            while True:
                try:
                    peer = server.accept()[0]
                except OSError:
                    return
                with peer:
                    asked.append(peer.recv(100))

        thread = threading.Thread(target=listen)
        thread.start()
        yield server.getsockname()[1], asked
        server.shutdown(socket.SHUT_RDWR)
    thread.join()


def opened_by_this_process(folder: Path) -> set[str]:
    """Files of a folder that this process has open."""
    links = [os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    return {os.readlink(link) for link in links if os.path.exists(link)} & set(
        map(str, folder.iterdir())
    )


def read(path: Path) -> None:
    if path.suffix in IMAGE_SUFFIXES:
        read_image(path)
    else:
        with Video(path) as video:
            list(video.chunks(video.plan(SAMPLING), FIT))


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", NAMES)
def test_nothing_else_is_opened(
    tmp_path: Path, visited: tuple[int, list[bytes]], name: str, text: str
) -> None:
    port, asked = visited
    real = write_video(tmp_path / "real.ts")
    os.utime(real, (0, 0))  # so that reading it shows, also where a file's use is seldom noted
    for target in TARGETS:
        (tmp_path / name).write_text(TEXTS[text].format(target.format(folder=tmp_path, port=port)))
        with pytest.raises(MediaError):
            read(tmp_path / name)
        assert real.stat().st_atime == 0, "the file that it names was read"
        assert not asked
        assert not opened_by_this_process(tmp_path)


@pytest.mark.parametrize("number", range(20))
def test_a_playlist_with_random_bytes_in_it_opens_nothing(tmp_path: Path, number: int) -> None:
    random = seeded("playlist", number)
    real = write_video(tmp_path / "real.ts")
    os.utime(real, (0, 0))
    data = bytearray(random.choice(list(TEXTS.values())).format(real).encode())
    for _ in range(random.randrange(1, 5)):
        at = random.randrange(len(data) + 1)
        data[at:at] = random.randbytes(random.randrange(1, 4))
    path = tmp_path / random.choice(("clip.mp4", "clip.ts", "clip"))
    path.write_bytes(data)
    with pytest.raises(MediaError):
        read(path)
    assert real.stat().st_atime == 0, bytes(data)


def test_the_real_thing_is_seen_so(tmp_path: Path) -> None:
    """The check above can fail: a reading moves the time of access."""
    real = write_video(tmp_path / "real.ts")
    os.utime(real, (0, 0))
    check_file(real)
    assert real.stat().st_atime > 0


def test_a_whole_run_names_each_and_captions_the_file_beside_them(tmp_path: Path) -> None:
    folder = tmp_path / "media"
    folder.mkdir()
    write_video(folder / "real.ts")
    for number, text in enumerate(TEXTS.values()):
        (folder / f"{number:02d}.mp4").write_text(text.format("real.ts"))
    where = ("--out", tmp_path / "out", "--store", tmp_path / "store")
    attacked("caption", folder, "--model", "demo", *where, "--format", "webdataset").holds(1)
    lines = (tmp_path / "out" / "captions.jsonl").read_text().splitlines()
    assert len(lines) == 1 and '"real.ts"' in lines[0]
    failed = (tmp_path / "out" / "failures.jsonl").read_text().splitlines()
    assert len(failed) == len(TEXTS)
