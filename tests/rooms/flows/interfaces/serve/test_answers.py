"""`penstock serve` answers what the commands write, over real models and in one store; the event
loops of servers wait for no file, no pipe and no disk."""

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
import pytest
from PIL import Image

from flows.commands.review.captions import ReviewedCaptions
from flows.core.console.display import Display
from flows.core.options.commands import CaptionConfig
from flows.execution.run import caption
from flows.interfaces.cli.main import main
from penstock_demo import CLIPS
from tests.support.chat_clients import messages
from tests.support.families import checkpoint
from tests.support.media import write_numbered, write_video
from tests.support.pipeline import PENSTOCK, ROOT, read_lines
from tests.support.servers import Answer
from tests.support.serving import REAL, Serving, a_picture, serving, vector_of

pytestmark = pytest.mark.slow
LABELS = "red circle,blue square,green triangle,purple cross"
ASKED = "Which shapes are there?"
"""What a run asked of the clip before the server was started."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures and a clip that were embedded, labelled and indexed, in a store."""
    place = tmp_path_factory.mktemp("served")
    (media := place / "media").mkdir()
    draw = np.random.default_rng(7)
    for at in range(3):
        grain = draw.integers(0, 255, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(grain).resize((200, 150)).save(media / f"p{at}.png")
    (media / "clip.mp4").write_bytes((CLIPS / "clip-03.mp4").read_bytes())
    store = ["--store", str(place / "store")]
    run = [str(media), "--model", "demo", *store]
    assert main(["index", "build", *run, "--tiles", "auto", "--out", str(place / "index")]) == 0
    requests = ["--labels", LABELS, "--tiles", "auto", "--threshold", "0.01", "--top", "4"]
    assert main(["label", *run, *requests, "--out", str(place / "labels")]) == 0
    assert main(["embed", *run, "--tiles", "auto", "--out", str(place / "vectors")]) == 0
    requests = ["--prompt", ASKED, "--out", str(place / "captions")]
    assert main(["caption", str(media / "clip.mp4"), "--model", "demo", *store, *requests]) == 0
    return place


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[Serving]:
    options = ["--caption-model", "demo", "--labels", LABELS, "--index", str(place / "index")]
    with serving(place, *options, command=REAL) as server:
        yield server


def message_of(answer: Answer) -> Any:
    assert answer.status == 200, answer.body
    return json.loads(answer.body)


def alike(some: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    """Labels that differ by what products of matrices of another size round otherwise."""
    for one, other in zip(some, others, strict=True):
        for name in ("score", "whole"):
            assert one.pop(name) == pytest.approx(other.pop(name), abs=1e-5)
    assert some == others


def media(place: Path, name: str) -> bytes:
    return (place / "media" / name).read_bytes()


def counted(server: Serving, name: str) -> float:
    lines = server.ask("GET", "/metrics").body.decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def test_labels_are_those_of_the_command_and_its_store(server: Serving, place: Path) -> None:
    """Of pictures, and of a clip frame by frame."""
    lines = read_lines(place / "labels" / "labels.jsonl")
    for line in (line for line in lines if line["time"] is None):
        body = media(place, line["media_path"])
        found = message_of(server.ask("POST", "/v1/label?threshold=0.01&top=4", body))
        alike(found["labels"], line["labels"])
        assert (found["top"], found["key"]) == (line["top"], line["features"])
        assert found["cached"] and (found["width"], found["height"]) == (200, 150)
    frames = [line for line in lines if line["time"] is not None]
    answer = server.ask("POST", "/v1/label?threshold=0.01&top=4", media(place, "clip.mp4"))
    found = message_of(answer)
    assert [frame["time"] for frame in found["frames"]] == [line["time"] for line in frames]
    for frame, line in zip(found["frames"], frames, strict=True):
        alike(frame["labels"], line["labels"])
    assert found["spans"] and {"start", "end", "labels"} == set(found["spans"][0])


def test_vectors_are_those_of_the_command(server: Serving, place: Path) -> None:
    from pyarrow.parquet import read_table

    rows = read_table(place / "vectors" / "embeddings.parquet").to_pylist()
    pairs = zip(rows, np.load(place / "vectors" / "embeddings.npy"), strict=True)
    vector = next(vector for row, vector in pairs if row["media_path"] == "p1.png")
    body = media(place, "p1.png")
    found = message_of(server.ask("POST", "/v1/embed?encoding=json", body))
    assert found["embedding"] == pytest.approx(vector.tolist(), abs=1e-5)
    assert vector_of(server.embed(body)).tolist() == vector.astype("<f2").tolist()


def test_what_is_sent_is_made_once_and_kept(server: Serving, place: Path, tmp_path: Path) -> None:
    Image.new("RGB", (90, 70), (200, 30, 40)).save(tmp_path / "new.png")
    body = (tmp_path / "new.png").read_bytes()
    first = message_of(server.ask("POST", "/v1/embed?encoding=json", body))
    again = message_of(server.ask("POST", "/v1/embed?encoding=json", body))
    assert (first["cached"], again["cached"]) == (False, True)
    assert first["embedding"] == again["embedding"]
    assert counted(server, "penstock_store_hits_total") >= 1


def test_refusals_name_no_file_that_the_server_made(server: Serving) -> None:
    request = "/v1/caption?prompt=" + quote("Look at <|image_pad|>")
    for words, path, body in (
        ("the prompt", request, a_picture()),
        ("the file", "/v1/embed", a_picture()[:200]),
    ):
        answer = server.ask("POST", path, body)
        assert answer.status == 422 and not re.search(rb"\d\.\w", answer.body), answer.body
        assert words in json.loads(answer.body)["error"], answer.body


def test_searches_agree(server: Serving, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--index", str(place / "index"), "--store", str(place / "store"), "--json"]
    for what, more in (("a red circle", []), (str(place / "media" / "p2.png"), ["--top", "2"])):
        assert main(["search", what, *where, *more]) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        if more:
            answer = server.ask("POST", "/v1/search?top=2", media(place, "p2.png"))
        else:
            answer = server.ask("GET", "/v1/search?q=a%20red%20circle")
        found = message_of(answer)["hits"]
        for hit, line in zip(found, lines, strict=True):
            for name in ("rank", "media_path", "time", "at", "box"):
                assert hit[name] == line[name]
            # The demo's text half is in bf16 in the server; the command computes in 32 bit.
            assert hit["score"] == pytest.approx(line["score"], abs=1e-3)
    picture = server.ask("GET", f"/v1/media/{found[0]['id']}")
    assert picture.body == media(place, "p2.png")
    assert picture.headers["content-type"] == "image/png"
    part = server.ask("GET", f"/v1/media/{found[0]['id']}", headers={"Range": "bytes=0-7"})
    assert (part.status, part.body) == (206, media(place, "p2.png")[:8])
    part = server.ask("GET", f"/v1/media/{found[0]['id']}", headers={"Range": "bytes=99999999-"})
    assert (part.status, set(json.loads(part.body))) == (416, {"error", "hint"}), part.body
    assert server.ask("GET", f"/v1/thumbnail/{found[0]['id']}").body.startswith(b"\xff\xd8")
    wrong = server.ask("GET", "/v1/search?q=x&where=nothing%20%3D")
    assert wrong.status == 422 and json.loads(wrong.body)["hint"]


def test_captions_are_those_of_the_command(server: Serving, place: Path, tmp_path: Path) -> None:
    names = ["clip-01.mp4", "clip-02.mp4"]
    clips = [str(CLIPS / name) for name in names]
    store = ["--store", str(tmp_path / "store"), "--out", str(tmp_path / "out")]
    assert main(["caption", *clips, "--model", "demo", *store]) == 0
    for name, line in zip(names, read_lines(tmp_path / "out" / "captions.jsonl"), strict=True):
        body = (CLIPS / name).read_bytes()
        (text,) = message_of(server.ask("POST", "/v1/caption", body))["captions"]
        expected = {key: line[key] for key in ("start", "end", "caption", "tokens")}
        assert text == {**expected, "ended": text["ended"]}
        again = message_of(server.ask("POST", "/v1/caption", body))
        assert again["cached"] and again["captions"] == [text]
    before = counted(server, 'penstock_batch_size_count{half="encode"}')
    assert not message_of(server.ask("POST", "/v1/caption?prompt=What%20moves?", body))["cached"]
    assert counted(server, 'penstock_batch_size_count{half="encode"}') == before


def test_prompts_are_counted_of_what_a_run_captioned_too(server: Serving, place: Path) -> None:
    body = media(place, "clip.mp4")
    found = message_of(server.ask("POST", f"/v1/caption?prompt={quote(ASKED)}", body))
    request = json.dumps({"model": "demo", "messages": messages(body, "video/mp4", ASKED)})
    assert found["cached"]
    encoded = 'penstock_batch_size_count{half="encode"}'
    before = counted(server, encoded)
    for _ in range(2):
        answer = message_of(server.ask("POST", "/v1/chat/completions", request))
        assert answer["choices"][0]["message"]["content"] == found["captions"][0]["caption"]
        assert answer["usage"]["prompt_tokens"] > 20
    assert counted(server, encoded) == before, "the run's features were not read"


def test_what_a_server_does_not_have_is_told(server: Serving) -> None:
    info = message_of(server.ask("GET", "/v1/info"))
    assert (info["model"], info["caption_model"]) == ("demo", "demo")
    assert info["labels"] == LABELS.split(",") and info["limits"]["clip_seconds"] == 600
    routes = message_of(server.ask("GET", "/openapi.json"))["paths"]
    assert {"/v1/label", "/v1/embed", "/v1/caption", "/v1/search", "/metrics"} <= routes.keys()
    assert server.ask("POST", "/v1/label?top=none", b"x").status == 422


def test_a_clip_too_long_is_refused_with_a_command_for_it(server: Serving, tmp_path: Path) -> None:
    clip = write_video(tmp_path / "long.mp4", ticks=(0, 21_000, 21_030))
    answer = server.ask("POST", "/v1/caption", clip.read_bytes())
    assert answer.status == 413 and b"penstock caption FILE" in answer.body


def test_clients_are_not_told_where_models_and_indexes_lie(server: Serving, place: Path) -> None:
    for path in ("/v1/info", "/v1/search?q=star", "/v1/models", "/v1/stats", "/metrics"):
        assert str(place).encode() not in server.ask("GET", path).body, path
    assert message_of(server.ask("GET", "/v1/info"))["index"]["folder"] == "index"
    assert message_of(server.ask("GET", "/v1/search?q=star"))["index"] == "index"
    (book := place / "index" / "index.json").rename(place / "index" / "aside.json")
    try:
        answer = server.ask("GET", "/v1/search?q=star")
        assert answer.status == 503 and str(place).encode() not in answer.body, answer.body
    finally:
        (place / "index" / "aside.json").rename(book)
    assert server.ask("GET", "/v1/search?q=star").status == 200


def test_penstock_caption_gets_what_the_model_itself_says(server: Serving, tmp_path: Path) -> None:
    pictures = write_numbered(tmp_path / "pictures", 6)
    for name in ("clip-01.mp4", "clip-02.mp4"):
        shutil.copy(CLIPS / name, pictures)
    address = (f"http://127.0.0.1:{server.port}/v1",)
    own = CaptionConfig(sources=(str(pictures),), model="demo", out=str(tmp_path / "own"))
    config = replace(own, model="openai:demo", endpoint=address, out=str(tmp_path / "out"))
    by_us, by_server = dict[str, str](), dict[str, str]()
    for each, texts in ((own, by_us), (config, by_server)):
        assert caption(each, Display(quiet=True)).exit_code == 0
        rows = read_lines(Path(each.out) / "captions.jsonl")
        texts.update((row["media_path"], row["caption"]) for row in rows)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["plan"]["served"]["video"] is True
    assert by_server.keys() == by_us.keys()
    assert sum(by_us[name] == text for name, text in by_server.items()) >= len(by_us) - 2
    subject = {"properties": {"subject": {"type": "string", "maxLength": 40}}}
    form = {"type": "object", "additionalProperties": False, "required": ["subject"], **subject}
    result = caption(replace(config, schema=json.dumps(form)), Display(quiet=True))
    rows, failed = (read_lines(tmp_path / f"out/{name}.jsonl") for name in ("captions", "failures"))
    assert len(rows) + len(failed) == 8 and result.exit_code == bool(failed)
    assert all(isinstance(row["fields"]["subject"], str) for row in rows)
    assert {row["error"] for row in failed} <= {"schema", "cut"}


CLIP = (CLIPS / "clip-01.mp4").read_bytes()
"""Eight frames of 17 tokens."""


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    place = tmp_path_factory.mktemp("served")
    model = place / "llava"
    shutil.copytree(checkpoint("llava"), model)
    config = json.loads((model / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 300
    (model / "config.json").write_text(json.dumps(config))
    with serving(place, command=[*PENSTOCK, "serve", "--caption-model", str(model)]) as server:
        yield server


def answer_to(server: Serving, text: str, **more: Any) -> tuple[int, Any]:
    """Status and answer of a chat request."""
    body = json.dumps({"messages": messages(CLIP, "video/mp4", text), **more})
    answer = server.ask("POST", "/v1/chat/completions", body)
    return answer.status, json.loads(answer.body)


def test_a_caption_without_a_limit_ends_with_the_context(short: Serving) -> None:
    answer = short.ask("POST", "/v1/caption", CLIP)
    assert answer.status == 200, answer.body
    (caption,) = json.loads(answer.body)["captions"]
    assert 0 < caption["tokens"] <= 300 - 8 * 17 and caption["ended"] in ("stop", "length")
    again = json.loads(short.ask("POST", "/v1/caption", CLIP).body)
    assert again["cached"] and again["captions"] == [caption]


def test_a_chat_without_a_limit_ends_with_the_context_others_fit(short: Serving) -> None:
    status, answer = answer_to(short, "what moves here?")
    assert status == 200 and answer["usage"]["total_tokens"] <= 300
    status, answer = answer_to(short, "what moves there?", max_tokens=256)
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    assert answer_to(short, "what moves there?", max_tokens=20)[0] == 200


AUDITED = [sys.executable, "-m", "tests.support.audited"]


def chat(**options: Any) -> bytes:
    return json.dumps({"messages": messages(a_picture(), "image/jpeg", "Why?"), **options}).encode()


def test_the_event_loop_waits_for_no_file_no_pipe_and_no_disk(tmp_path: Path) -> None:
    book, labels = tmp_path / "book.json", ["--labels", "red star,blue ring"]
    models = ["--model", "demo", *labels, "--caption-model", "demo", "--idle", "0.02"]
    with serving(tmp_path, command=[*AUDITED, str(book), "serve", *models]) as server:
        clip = CLIP
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
    clip = str(CLIPS / "clip-01.mp4")
    assert main(["caption", clip, "--model", "demo", "--out", str(out), "--quiet"]) == 0
    with closing(ReviewedCaptions(out)) as captions:
        of = next(iter(captions.folder.rows))
    command = [*AUDITED, str(book), "review", str(out), "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = urlsplit(process.stdout.readline().split()[-1])
            server = Serving(port=address.port or 0, process=process, log=book)  # type: ignore[arg-type]
            word, _, run = address.path.strip("/").split("/")
            message = ("media/0", "small/0?at=1", "captions", "history", "again", "sets")
            for path in ("", "start", "files", "runs", *(f"run/{run}/{each}" for each in message)):
                assert server.ask("GET", f"/{word}/{path}").status == 200, path
            was = {"caption": None, "review": ""}
            change = {"of": of, "caption": "A person's words.", "review": "accepted", "was": was}
            edit = {"id": "1", "does": "correct", "changes": [change]}
            origin = f"http://127.0.0.1:{address.port}"
            headers = {"Content-Type": "application/json", "X-Penstock-Token": word}
            headers["Origin"] = origin
            words: dict[str, Any] = {"values": {"out": str(out)}}
            for path, body, status in ((f"run/{run}/edits", edit, 200), ("words", words, 422)):
                answer = server.ask("POST", f"/{word}/{path}", json.dumps(body).encode(), headers)
                assert answer.status == status, answer.body
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
    assert json.loads(book.read_text()) == {}
