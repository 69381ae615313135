"""A track as a browser's player takes it, from a server, under a name that needs care."""

import html
import json
import re
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import pytest

from artifacts.files import write_text
from artifacts.subtitles import vtt_lines
from tests.support.browser import CHROMIUM
from tests.support.media import write_video
from tests.support.rows import HARD, caption, hard_rows

NAME = "[1] Übung & <b>50% #?no.1.vtt"
PAGE = """<!doctype html><meta charset="utf-8">
<video muted src="v.webm"><track default kind="captions" src="TRACK"></video><pre>waiting</pre>
<script>
const track = document.querySelector("track"), told = document.querySelector("pre");
track.onload = () => {
  told.textContent = JSON.stringify(Array.from(track.track.cues, cue =>
    [cue.startTime, cue.endTime, cue.getCueAsHTML().textContent]));
};
track.onerror = () => { told.textContent = "the browser refuses the track"; };
track.track.mode = "showing";
</script>"""


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder and says nothing."""

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Where the folder `site` is served."""
    (tmp_path / "site").mkdir()
    handler = partial(Quiet, directory=str(tmp_path / "site"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.browser
def test_a_browser_shows_every_cue_as_it_was_said(address: str, tmp_path: Path) -> None:
    rows = [*hard_rows(), caption("a picture", 60.0, 60.0)]
    site = tmp_path / "site"
    write_text(site / NAME, vtt_lines(rows))
    write_text(site / "page.html", [PAGE.replace("TRACK", quote(NAME))])
    write_video(site / "v.webm", codec="libvpx")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000"]
    done = subprocess.run(
        [
            str(CHROMIUM),
            *options,
            f"--user-data-dir={tmp_path / 'profile'}",
            "--dump-dom",
            f"{address}/page.html",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search("<pre>(.*?)</pre>", done.stdout, re.DOTALL)
    assert found, done.stderr
    cues = json.loads(html.unescape(found[1]))
    texts = [" ".join(text.split()) for text in (*HARD, "a picture")]
    assert [text for _, _, text in cues] == [text for text in texts if text]
    said = [row for row, text in zip(rows, texts, strict=True) if text]
    assert [start for start, _, _ in cues] == [round(row.start, 3) for row in said]
    assert cues[-1][:2] == [60.0, 60.001]
    assert all(start < end for start, end, _ in cues)
