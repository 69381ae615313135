"""Questions that `penstock serve` answers: about an upload, to OpenAI's own client, and to
`penstock ask`, with the probabilities of the model on this machine."""

import base64
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file

from flows.interfaces.cli.main import main
from penstock_demo import CHECKPOINT
from tests.support.pipeline import PENSTOCK, read_lines
from tests.support.serving import Serving, serving

LABELS = ["s", "nd", "2"]
"""Tokens that the demo finds improbable, and among the 20 most probable ones."""
QUESTION = {"text": "Describe this image in detail.", "labels": LABELS, "instruction": ""}
BEGIN = {**QUESTION, "labels": ["A", "nd"]}
QUESTIONS = {"odd": QUESTION, "begin": BEGIN}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo in 32 bits, whose rounding both ways share."""
    folder = tmp_path_factory.mktemp("model")
    for path in CHECKPOINT.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    for path in folder.glob("*.safetensors"):
        tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
        save_file(tensors, path, {"format": "pt"})
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"bfloat16"', '"float32"'))
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of grey blocks, which JPEG keeps as they are."""
    folder = tmp_path_factory.mktemp("pictures")
    for at, grey in enumerate((40, 128, 240)):
        picture = Image.new("RGB", (96, 96), (grey,) * 3)
        ImageDraw.Draw(picture).rectangle((32, 32, 63, 63), fill=(255 - grey,) * 3)
        picture.save(folder / f"{at}.png")
    return folder


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    command = [*PENSTOCK, "serve", "--caption-model", str(model)]
    with serving(tmp_path_factory.mktemp("serve"), command=command) as server:
        yield server


def address(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def near(answers: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Check that answers are the expected ones but for rounding."""
    assert answers.keys() == expected.keys()
    for name, answer in answers.items():
        wanted = expected[name]
        assert answer["answer"] == wanted["answer"] and "bounded" not in answer
        assert answer["probabilities"] == pytest.approx(wanted["probabilities"], abs=1e-3)
        assert answer["mass"] == pytest.approx(wanted["mass"], rel=0.02)


def test_a_server_answers_as_the_model_on_this_machine(
    server: Serving, model: Path, pictures: Path, tmp_path: Path
) -> None:
    file = tmp_path / "questions.json"
    file.write_text(json.dumps(QUESTIONS))
    base = f"http://127.0.0.1:{server.port}/v1"
    ways = {
        "local": ["--model", str(model)],
        "served": ["--model", f"openai:{model.name}", "--endpoint", base],
    }
    for name, options in ways.items():
        out, store = str(tmp_path / name), str(tmp_path / f"store-{name}")
        where = ["--out", out, "--store", store, "--questions", str(file)]
        assert main(["ask", str(pictures), *where, *options]) == 0
    rows = {name: read_lines(tmp_path / name / "answers.jsonl") for name in ways}
    assert len(rows["local"]) == 3
    for own, served in zip(rows["local"], rows["served"], strict=True):
        near(served["answers"], own["answers"])
        body = {"media": address(pictures / own["media_path"]), "questions": QUESTIONS}
        answer = json.loads(server.ask("POST", "/v1/answers", json.dumps(body)).body)
        near(answer["rows"][0]["answers"], own["answers"])


def test_openais_client_gets_log_probabilities(server: Serving, pictures: Path) -> None:
    client = OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="unused", max_retries=0)
    parts: Any = [
        {"type": "text", "text": QUESTION["text"]},
        {"type": "image_url", "image_url": {"url": address(pictures / "0.png")}},
    ]

    def ask(**more: Any) -> Any:
        return client.chat.completions.create(
            model=client.models.list().data[0].id,
            messages=[{"role": "user", "content": parts}],
            **more,
        ).choices[0]

    choice = ask(max_tokens=1, logprobs=True, top_logprobs=20)
    (token,) = choice.logprobs.content
    scores = [other.logprob for other in token.top_logprobs]
    assert token.token == choice.message.content == token.top_logprobs[0].token == "A"
    assert scores == sorted(scores, reverse=True) and len(scores) == 20 and scores[0] <= 0
    assert bytes(token.bytes).decode() == token.token
    assert ask(max_tokens=1, logprobs=True).logprobs.content[0].top_logprobs == []
    assert ask(max_tokens=1).logprobs is None
    with pytest.raises(openai.BadRequestError, match="logprobs are stated of one token"):
        ask(max_tokens=2, logprobs=True)


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"media": "http://x/1.jpg"}, 400, "only data: URLs are accepted"),
        ({"questions": []}, 422, "questions are no object"),
        ({"questions": {"a": {"text": "?", "labels": ["b"]}}}, 422, "a: 1 labels"),
        ({"questions": {"a": {"text": "{}?", "tags": [*map(str, range(101))]}}}, 422, "101 quest"),
        ({"more": 1}, 422, "no object with media and questions alone"),
    ],
)
def test_wrong_requests_get_one_error(
    server: Serving, pictures: Path, change: dict[str, Any], status: int, message: str
) -> None:
    body = {"media": address(pictures / "0.png"), "questions": QUESTIONS, **change}
    answer = server.ask("POST", "/v1/answers", json.dumps(body))
    assert answer.status == status and message in json.loads(answer.body)["error"]


def test_labels_of_several_words_are_letters_of_each_chunk(server: Serving, pictures: Path) -> None:
    shot = {"text": "Which?", "labels": ["close-up", "wide shot"]}
    same = {"text": "Which?", "labels": ["Yes", "Yesterday"]}
    questions = {"shot": shot, "car": "A car?", "same": same}
    body = {"media": address(pictures / "1.png"), "questions": questions}
    first, again = (
        json.loads(server.ask("POST", "/v1/answers", json.dumps(body)).body) for _ in range(2)
    )
    assert first["rows"][0]["answers"]["shot"]["answer"] == "close-up"  # the demo begins with A
    assert first["rows"][0]["answers"]["car"]["bounded"] is True  # its Yes is several tokens
    assert first["rows"][0]["unanswered"] == ["same"]  # both begin with one token
    assert (first["cached"], again["cached"]) == (False, True) and first["rows"] == again["rows"]
