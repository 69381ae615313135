"""What the event loop of a server waits for: no file, no pipe and no disk."""

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from penstock_demo import CLIPS
from tests.support.serving import a_picture, serving

AUDITED = [sys.executable, "-m", "tests.support.audited"]


def chat(prompt: str, **options: Any) -> bytes:
    import base64

    url = "data:image/jpeg;base64," + base64.b64encode(a_picture()).decode()
    content = [{"type": "text", "text": prompt}, {"type": "image_url", "image_url": {"url": url}}]
    messages = [{"role": "user", "content": content}]
    return json.dumps({"messages": messages, **options}).encode()


@pytest.mark.slow
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
        assert server.ask("POST", "/v1/chat/completions", chat("Why?")).status == 200
        assert server.ask("POST", "/v1/chat/completions", chat("Why?", stream=True)).status == 200
        assert server.ask("POST", "/v1/caption", b"no picture").status == 415
        assert server.ask("POST", "/v1/caption", b"").status == 422
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(60)
    assert json.loads(book.read_text()) == {}
