"""A track as a browser's player takes it, from a server, under a name that needs care."""

import html
import json
import re
from pathlib import Path
from urllib.parse import quote

import pytest

from artifacts.files import write_text
from artifacts.subtitles import vtt_lines
from tests.support.browser import CHROMIUM
from tests.support.commands import completed
from tests.support.media import write_video
from tests.support.rows import HARD, caption, hard_rows
from tests.support.web import web_server

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


@pytest.mark.slow
@pytest.mark.browser
def test_a_browser_shows_every_cue_as_it_was_said(tmp_path: Path) -> None:
    rows = [*hard_rows(), caption("a picture", 60.0, 60.0)]
    site = tmp_path / "site"
    site.mkdir()
    write_text(site / NAME, vtt_lines(rows))
    write_text(site / "page.html", [PAGE.replace("TRACK", quote(NAME))])
    write_video(site / "v.webm", codec="libvpx")
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu"]
    command += ["--virtual-time-budget=20000", f"--user-data-dir={tmp_path / 'profile'}"]
    with web_server(site) as web:
        command += ["--dump-dom", f"{web.address}/page.html"]
        done = completed(command, timeout=120, check=True)
    found = re.search("<pre>(.*?)</pre>", done.stdout, re.DOTALL)
    assert found, done.stderr
    cues = json.loads(html.unescape(found[1]))
    texts = [" ".join(text.split()) for text in (*HARD, "a picture")]
    assert [text for _, _, text in cues] == [text for text in texts if text]
    said = [row for row, text in zip(rows, texts, strict=True) if text]
    assert [start for start, _, _ in cues] == [round(row.start, 3) for row in said]
    assert cues[-1][:2] == [60.0, 60.001]
    assert all(start < end for start, end, _ in cues)
