"""A server whose model has a short context answers in what of it is left, unless a request asks for
a longer answer."""

import base64
import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from penstock_demo import CLIPS
from tests.support.families import checkpoint
from tests.support.pipeline import PENSTOCK
from tests.support.serving import Serving, serving

pytestmark = pytest.mark.slow
CLIP = (CLIPS / "clip-01.mp4").read_bytes()
"""Eight frames of 17 tokens."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    place = tmp_path_factory.mktemp("served")
    model = place / "llava"
    shutil.copytree(checkpoint("llava"), model)
    config = json.loads((model / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 300
    (model / "config.json").write_text(json.dumps(config))
    command = [*PENSTOCK, "serve", "--caption-model", str(model)]
    with serving(place, command=command) as server:
        yield server


def asked(server: Serving, text: str, **more: Any) -> tuple[int, Any]:
    """Status and answer of a chat request."""
    url = f"data:video/mp4;base64,{base64.b64encode(CLIP).decode()}"
    content = [{"type": "text", "text": text}, {"type": "video_url", "video_url": {"url": url}}]
    body = json.dumps({"messages": [{"role": "user", "content": content}], **more})
    answer = server.ask("POST", "/v1/chat/completions", body)
    return answer.status, json.loads(answer.body)


def test_a_caption_without_a_limit_ends_with_the_context(server: Serving) -> None:
    answer = server.ask("POST", "/v1/caption", CLIP)
    assert answer.status == 200, answer.body
    (caption,) = json.loads(answer.body)["captions"]
    assert 0 < caption["tokens"] <= 300 - 8 * 17 and caption["ended"] in ("stop", "length")
    again = json.loads(server.ask("POST", "/v1/caption", CLIP).body)
    assert again["cached"] and again["captions"] == [caption]


def test_a_chat_without_a_limit_ends_with_the_context_and_one_with_a_limit_has_to_fit(
    server: Serving,
) -> None:
    status, answer = asked(server, "what moves here?")
    assert status == 200 and answer["usage"]["total_tokens"] <= 300
    status, answer = asked(server, "what moves there?", max_tokens=256)
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    assert asked(server, "what moves there?", max_tokens=20)[0] == 200
