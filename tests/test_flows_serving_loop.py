"""What the event loops of servers wait for: no file, no pipe and no disk."""

import json
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from flows.cli.main import main
from flows.reviewing.captions import ReviewedCaptions
from penstock_demo import CLIPS
from tests.support.chat_clients import messages
from tests.support.pipeline import ROOT
from tests.support.serving import Serving, a_picture, serving

pytestmark = pytest.mark.slow
AUDITED = [sys.executable, "-m", "tests.support.audited"]


def chat(**options: Any) -> bytes:
    return json.dumps({"messages": messages(a_picture(), "image/jpeg", "Why?"), **options}).encode()


def test_the_event_loop_waits_for_no_file_no_pipe_and_no_disk(tmp_path: Path) -> None:
    book, labels = tmp_path / "book.json", ["--labels", "red star,blue ring"]
    models = ["--model", "demo", *labels, "--caption-model", "demo", "--idle", "0.02"]
    with serving(tmp_path, command=[*AUDITED, str(book), "serve", *models]) as server:
        clip = (Path(CLIPS) / "clip-01.mp4").read_bytes()
        for path in ("/", "/v1/info", "/v1/stats", "/metrics", "/readyz", "/openapi.json"):
            assert server.ask("GET", path).status in (200, 503)
        for body in (a_picture(), a_picture((2000, 1500)), clip, clip):
            assert server.ask("POST", "/v1/label", body).status == 200
            assert server.ask("POST", "/v1/embed?encoding=json", body).status == 200
            assert server.ask("POST", "/v1/caption", body).status == 200
            assert server.ask("POST", "/v1/caption?stream=1&prompt=Why", body).status == 200
        assert server.ask("POST", "/v1/label?labels=a,b", a_picture()).status == 200
        assert server.ask("POST", "/v1/chat/completions", chat()).status == 200
        assert server.ask("POST", "/v1/chat/completions", chat(stream=True)).status == 200
        assert server.ask("POST", "/v1/caption", b"no picture").status == 415
        assert server.ask("POST", "/v1/caption", b"").status == 422
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
    assert json.loads(book.read_text()) == {}


def test_the_event_loop_of_a_review_waits_for_none_either(tmp_path: Path) -> None:
    out, book = tmp_path / "out", tmp_path / "book.json"
    clip = str(Path(CLIPS) / "clip-01.mp4")
    assert main(["caption", clip, "--model", "demo", "--out", str(out), "--quiet"]) == 0
    with closing(ReviewedCaptions(out)) as captions:
        of = next(iter(captions.rows))
    command = [*AUDITED, str(book), "review", str(out), "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = urlsplit(process.stdout.readline().split()[-1])
            server = Serving(port=address.port or 0, process=process, log=book)  # type: ignore[arg-type]
            word, _, run = address.path.strip("/").split("/")
            for path in (
                "media/0",
                "small/0?at=1",
                "captions",
                "history",
                "again",
                "sets",
                "teach",
            ):
                answer = server.ask("GET", f"/{word}/run/{run}/{path}")
                assert answer.status == 200, path
            for path in ("", "start", "files", "runs"):
                assert server.ask("GET", f"/{word}/{path}").status == 200, path
            was = {"caption": None, "review": ""}
            change = {"of": of, "caption": "A person's words.", "review": "accepted", "was": was}
            edit = {"id": "1", "does": "correct", "changes": [change]}
            origin = f"http://127.0.0.1:{address.port}"
            headers = {"Content-Type": "application/json", "X-Penstock-Token": word}
            for path, body in (
                (f"run/{run}/edits", edit),
                ("words", {"values": {"out": str(out)}}),
            ):
                given = {**headers, "Origin": origin}
                answer = server.ask("POST", f"/{word}/{path}", json.dumps(body).encode(), given)
                assert answer.status == (422 if path == "words" else 200), answer.body
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
    assert json.loads(book.read_text()) == {}
