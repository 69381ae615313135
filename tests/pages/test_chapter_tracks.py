"""Tracks of chapters in a player of a real browser."""

import contextlib
import json
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from flows.interfaces.cli.main import main
from penstock_demo import CLIPS
from tests.support.browser import Browser

pytestmark = [pytest.mark.browser, pytest.mark.slow]
PAGE = '<!doctype html><video src="{clip}"><track kind="chapters" src="{track}" default></video>'
CUES = """
const track = document.querySelector('track').track
track.mode = 'hidden'
return track.cues && track.cues.length
    && [track.kind, ...[...track.cues].map(c => [c.startTime, c.endTime, c.text])]
"""


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder, and prints nothing."""

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@contextlib.contextmanager
def address_of(folder: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_player_shows_the_chapters_of_a_summary(browser: Browser, tmp_path: Path) -> None:
    clip, out = CLIPS / "clip-02.mp4", tmp_path / "out"
    words = ["caption", str(clip), "--model", "demo", "--out", str(out), "--quiet"]
    assert main([*words, "--chunk", "1", "--summary"]) == 0
    (row,) = map(json.loads, (out / "summaries.jsonl").read_text().splitlines())
    (tmp_path / clip.name).write_bytes(clip.read_bytes())
    page = PAGE.format(clip=clip.name, track="out/clip-02.chapters.vtt")
    (tmp_path / "page.html").write_text(page)
    with address_of(tmp_path) as address:
        browser.open(f"{address}/page.html")
        kind, *cues = browser.wait(CUES)
    expected = [[c["start"], c["end"], " ".join(c["text"].split())] for c in row["chapters"]]
    assert kind == "chapters"
    assert [text for *_, text in cues] == [text for *_, text in expected]
    assert [time for *times, _ in cues for time in times] == pytest.approx(
        [time for *times, _ in expected for time in times], abs=0.0005
    )

    (out / "clip-02.chapters.vtt").write_text("WEBVTT\n\n00:00.000 --> 00:01.000\nMine\n")
    assert main([*words, "--chunk", "1", "--summary", "--summary-prompt", "Say more."]) == 0
    assert "Mine" in (out / "clip-02.chapters.vtt").read_text()
    assert main([*words, "--chunk", "1", "--summary", "--format", "vtt"]) == 0
    assert len([*out.glob("*.vtt")]) == 2
