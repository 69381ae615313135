"""Captions by a model that a server runs: identity and keys, resuming, kills, secrets and hosts."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.remote.endpoints import KEY, LISTED, endpoint_of, keys_from
from flows.core.checkpoint.served import open_served
from flows.core.console.display import Display
from flows.core.options.commands import CaptionConfig
from flows.core.options.vectors import EmbedConfig
from flows.execution.run import caption, embed
from flows.interfaces.cli.main import main
from flows.outputs.run_result import RunResult
from penstock_demo import CLIPS
from stages.ask.servers import Client, Reply, _wait
from tests.support.builders.endpoint import StandIn, message_of, running
from tests.support.commands import completed
from tests.support.media import write_numbered
from tests.support.pipeline import PENSTOCK, ROOT, read_lines

SECRET = "sk-secret-0123456789abcdef"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write_numbered(tmp_path / "pictures", 6)


def with_clip(folder: Path, name: str = "clip.mp4") -> Path:
    """Put a clip into a folder."""
    folder.mkdir(exist_ok=True)
    return Path(shutil.copy(CLIPS / "clip-01.mp4", folder / name))


def command(address: str, sources: Path, *more: str) -> list[str]:
    model = ("--model", "openai:m", "--endpoint", address)
    return [*PENSTOCK, "caption", str(sources), *model, *more]


def config_for(address: str, sources: Path, **more: Any) -> CaptionConfig:
    given: dict[str, Any] = {"model": "openai:m", "endpoint": (address,)} | more
    return CaptionConfig(sources=(str(sources),), out=str(sources.parent / "out"), **given)


def captioned(config: CaptionConfig) -> RunResult:
    return caption(config, Display(quiet=True))


def captions_of(config: CaptionConfig) -> list[dict[str, Any]]:
    return read_lines(Path(config.out) / "captions.jsonl")


def plan_of(config: CaptionConfig) -> Any:
    return json.loads((Path(config.out) / "run.json").read_text())["plan"]


@pytest.mark.slow
def test_pictures_and_videos_are_captioned_once(pictures: Path) -> None:
    with_clip(pictures)
    stand_in = StandIn()
    stand_in.answer = lambda request, *_: (
        (400, {"error": "unknown part video_url"}) if "video_url" in str(request) else None
    )
    with running(stand_in) as address:
        config = config_for(address, pictures)
        assert captioned(config).exit_code == 0
        once = len(stand_in.requests)
        assert once == 8  # of these, one finds out whether the server takes videos
        first = captions_of(config)
        assert [len(row["frames"]) for row in first] == [1] * 6 + [8]
        assert captioned(config).exit_code == 0
        assert len(stand_in.requests) == once and captions_of(config) == first
        assert captioned(replace(config, prompt="What is it?")).exit_code == 0
        assert len(stand_in.requests) == once + 7
    served = plan_of(config)["served"]
    assert served["identity"] == ["name and address", address] and served["video"] is False
    note, again = sorted(plan_of(config)["notes"])
    assert again == "made again: captions 7, frames 7 (changed since the last run: the prompt)"
    assert note.startswith(f"frames go to {address}, each as a picture; m is identified by")


@pytest.mark.slow
def test_an_unknown_reason_for_an_end_stands_in_the_row_and_in_the_last_line(
    pictures: Path,
) -> None:
    stand_in = StandIn()

    def answer(request: dict[str, Any], digest: str, _: int) -> Any:
        found, is_first = message_of(digest), len(stand_in.requests) == 1
        found["choices"][0]["finish_reason"] = "pause_turn" if is_first else "STOP"
        return 200, found

    stand_in.answer = answer
    with running(stand_in) as address:
        result = captioned(config := config_for(address, pictures))
    odd = [row for row in captions_of(config) if row["warnings"]]
    expected = "the server ended the answer for a reason that is not known, so it may be cut"
    assert [row["warnings"] for row in odd] == [[f"{expected}: pause_turn"]]
    assert ", 1 ended by the server for an unknown reason" in result.line()


@pytest.mark.in_turn
@pytest.mark.parametrize("counts", [True, False])
def test_only_a_server_that_counts_tokens_of_a_video_gets_videos(
    tmp_path: Path, counts: bool
) -> None:
    with_clip(tmp_path / "clips")
    stand_in = StandIn()

    def answer(request: dict[str, Any], digest: str, _: int) -> Any:
        found = message_of(digest)
        found["usage"]["prompt_tokens"] = 99 if counts and "video_url" in str(request) else 9
        return 200, found

    stand_in.answer = answer
    with running(stand_in) as address:
        captioned(config := config_for(address, tmp_path / "clips"))
    assert plan_of(config)["served"]["video"] is counts
    assert ("data:video/mp4;base64," in str(stand_in.requests[-1])) is counts


def listing(**model: Any) -> dict[str, Any]:
    return {"/v1/models": {"data": [model]}}


TAGS = {"/api/tags": {"models": [{"name": "m:latest", "digest": "abc"}]}}
PROPS = {"/props": {"model_path": "/m.gguf", "chat_template": "{{x}}"}}
PAGES: dict[str, tuple[dict[str, Any], str]] = {
    "vllm": (listing(id="m", owned_by="vllm", root="org/m"), "org/m"),
    "ollama": (listing(id="m:latest", owned_by="library") | TAGS, "abc"),
    "llama-server": (listing(id="m", owned_by="llamacpp", meta={"size": 7}) | PROPS, ""),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", PAGES)
def test_what_a_server_states_identifies_its_model(pictures: Path, kind: str) -> None:
    pages, value = PAGES[kind]
    stand_in = StandIn()
    stand_in.pages = pages
    with running(stand_in) as address:
        captioned(config := config_for(address, pictures))
        stated = plan_of(config)["served"]["identity"]
        assert "state" in stated[0] and stated[1].startswith(value) and len(stated) == 2
        text = json.dumps(pages).replace("abc", "abd").replace("org/m", "org/n")
        stand_in.pages = json.loads(text.replace("/m.gguf", "/n.gguf"))
        captioned(config)
        assert len(stand_in.requests) == 12
        captioned(replace(config, revision="mine"))
        captioned(replace(config, revision="mine"))
    assert len(stand_in.requests) == 18
    assert plan_of(config)["served"]["identity"] == ["--revision", "mine"]


@pytest.mark.slow
def test_a_plan_names_what_the_server_does_not_list(
    pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in = StandIn()
    with running(stand_in) as address:
        where = ["--model", "openai:n", "--endpoint", address]
        assert main(["plan", str(pictures), *where]) == 0
        told_of_all = capsys.readouterr().out
        assert f"note        {address} does not list n, but m\n" in told_of_all
        assert "--keep-frames keeps them" in told_of_all and "--memory" not in told_of_all
        assert not stand_in.requests
        for stand_in.models in ({}, {"data": []}, {"data": [{"id": "n:latest"}]}):
            assert main(["plan", str(pictures), *where, "--keep-frames"]) == 0
            assert "does not list" not in (told_of_all := capsys.readouterr().out)
            assert "cuts them again" not in told_of_all
        stand_in.models = {"data": [{"id": "m"}, {"id": "\x1b[2J"}, {"id": 7}]}
        clip, stand_in.answer = with_clip(pictures, "a.mp4"), lambda *_: (404, {"error": "no n"})
        assert main(["plan", str(pictures), *where]) == 2
        assert f"no n; {address} does not list n, but [2J, m. Check" in capsys.readouterr().err
        clip.unlink()
        stand_in.answer = None
        captioned(config := config_for(address, pictures, model="openai:n"))
    assert plan_of(config)["notes"][1] == f"{address} does not list n, but [2J, m"


@pytest.mark.parametrize(
    ("status", "text"), [(503, "does not state its models"), (401, "wants a key: HTTP 401")]
)
def test_a_server_that_does_not_state_its_models_ends_the_run_fails(
    pictures: Path, status: int, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.ask.servers.PAUSE", (0.01, 0.01))
    stand_in = StandIn()
    stand_in.status_of_pages = status
    with running(stand_in) as address, pytest.raises(EnvironmentFault, match=text):
        captioned(config_for(address, pictures))
    assert not stand_in.requests


@pytest.mark.slow
def test_a_finished_run_with_a_revision_needs_no_server(pictures: Path) -> None:
    with running(StandIn()) as address:
        config = config_for(address, pictures, revision="1")
        captioned(config)
    assert captioned(config).exit_code == 0
    with pytest.raises(EnvironmentFault, match=r"no answer from .* \(no connection"):
        captioned(replace(config, revision=None))


@pytest.mark.slow
def test_what_stays_unanswered_is_named_and_done_by_the_next_run(pictures: Path) -> None:
    stand_in = StandIn()
    with running(stand_in) as address:
        odd = 500, {"error": "oops"}
        stand_in.answer = lambda _, digest, __: odd if int(digest, 16) % 2 else None
        result = captioned(config := config_for(address, pictures, retry_failed=True))
        failed = read_lines(Path(config.out) / "failures.jsonl")
        assert result.exit_code == 1 and failed
        assert {row["error"] for row in failed} == {"unanswered"}
        assert len(captions_of(config)) + len(failed) == 6
        stand_in.answer = None
        assert captioned(config).exit_code == 0
    assert len(captions_of(config)) == 6


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"precision": "int8"}, "--precision: not possible with openai:m"),
        ({"features_as": "int8-64"}, "--features-as: not possible with openai:m"),
        ({"top_k": 2}, "--top-k: not possible with openai:m"),
        ({"adapter": "a", "engine": "gguf"}, "--adapter: not possible"),
        ({"memory": 1 << 30, "batch_size": 2}, "--memory, --batch-size: not possible"),
        ({"endpoint": ()}, "whose address is missing"),
        ({"endpoint": ("ftp://a/v1",)}, "not an address of http or https"),
        ({"endpoint": ("http://user:pass@127.0.0.1/v1",)}, "holds more than scheme"),
        ({"endpoint": ("http://192.168.1.7/v1",)}, "is not encrypted"),
        ({"model": "demo"}, "--endpoint: demo runs on this machine"),
        ({"model": "openai:"}, "names no model"),
    ],
)
def test_what_has_no_effect_is_refused_fails(given: dict[str, Any], text: str) -> None:
    served = {"sources": ("a",), "model": "openai:m", "endpoint": ("http://localhost/v1",)}
    with pytest.raises(UsageError, match=text) as refusal:
        CaptionConfig(**(served | given))
    assert "pass" not in str(refusal.value).replace("password", "")


def test_other_commands_refuse_served_models_fails(pictures: Path) -> None:
    with pytest.raises(UsageError, match="only `penstock caption` and `penstock ask` can"):
        embed(EmbedConfig(sources=(str(pictures),), model="openai:m"), Display(quiet=True))


def test_a_key_belongs_to_its_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys"
    path.write_text("models.example = one\nlocalhost:81=two\n", encoding="utf-8")
    with pytest.raises(UsageError, match="other users of this machine may read it"):
        keys_from(str(path))
    path.chmod(0o600)
    keys = keys_from(str(path))
    names = ("models.example/v1", "models.example:8443", "x.models.example")
    urls = (*(f"https://{name}" for name in names), "http://localhost:81/v1", "http://localhost:82")
    assert [keys.key(endpoint_of(url)) for url in urls] == ["one", "one", "", "two", ""]
    path.write_text(f"host {SECRET}\n", encoding="utf-8")
    with pytest.raises(UsageError, match="line 1: not of the form") as refusal:
        keys_from(str(path))
    assert SECRET not in str(refusal.value)
    monkeypatch.setenv(KEY, SECRET)
    with pytest.raises(UsageError, match="0 here"):
        keys_from("")
    monkeypatch.setenv(LISTED, "https://a.example/v1")
    assert keys_from("").key(endpoint_of("https://a.example/v1")) == SECRET
    assert keys_from("").key(endpoint_of("https://b.example/v1")) == ""


HOOK = """
    import os, sys
    def note(event, given):
        if event == "socket.connect":
            line = f"connect {given[1]!r}"
        elif event == "socket.getaddrinfo":
            line = f"look up {given[0]!r}"
        elif event == "open" and isinstance(given[0], str) and given[2] & 3:
            line = f"write {os.path.abspath(given[0])}"
        elif event in ("os.rename", "os.replace"):
            line = f"write {os.path.abspath(given[1])}"
        else:
            return
        with open(PATH, "a") as log:
            log.write(line + "\\n")
    def once(event, given, busy=[]):
        if not busy:
            busy.append(1)
            try:
                note(event, given)
            finally:
                busy.clear()
    sys.addaudithook(once)
"""
"""Writes down which hosts a process and its children contact, and which files they write."""


@pytest.mark.slow
def test_no_file_has_the_key_and_no_other_host_is_contacted(pictures: Path, tmp_path: Path) -> None:
    hook, log = tmp_path / "hook", tmp_path / "events.txt"
    hook.mkdir()
    code = textwrap.dedent(HOOK).replace("PATH", repr(str(log)))
    (hook / "sitecustomize.py").write_text(code, encoding="utf-8")
    keys = tmp_path / "keys"
    keys.write_text(f"127.0.0.1 = {SECRET}\n", encoding="utf-8")
    keys.chmod(0o600)
    stand_in = StandIn()

    def answer(request: dict[str, Any], digest: str, before: int) -> Any:
        told_key = stand_in.headers[-1]["authorization"]
        if int(digest, 16) % 2:
            return 400 if before else 500, {"error": f"{told_key} is not welcome"}
        return 200, message_of(digest, fingerprint=told_key)

    stand_in.answer = answer
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.9:9")
    environment = {**os.environ, "PYTHONPATH": f"{hook}:{ROOT}", **proxies}
    with running(stand_in) as address:
        where = ("--endpoint-keys", str(keys), "--out", str(tmp_path / "out"))
        request = command(address, pictures, *where)
        done = completed(request, cwd=tmp_path, env=environment, timeout=120)
    assert done.returncode == 1 and SECRET not in done.stdout + done.stderr
    events = log.read_text(encoding="utf-8").splitlines()
    contacts = {line for line in events if line.startswith(("connect (", "look up"))}
    assert {line.split("'")[1] for line in contacts} == {"127.0.0.1"}
    ports = {line.split(", ")[1].rstrip(")") for line in contacts if "connect" in line}
    assert ports == {str(stand_in.port)}
    written = {Path(line[6:]) for line in events if line.startswith("write ")}
    assert any("captions" in path.parts for path in written)
    for path in {*written, *tmp_path.rglob("*")} - {keys}:
        if path.is_file() and not str(path).startswith(("/dev", "/proc", "/sys")):
            assert SECRET.encode() not in path.read_bytes(), path
    assert {each["authorization"] for each in stand_in.headers} == {f"Bearer {SECRET}"}


@pytest.mark.slow
def test_clients_of_openai_can_read_what_is_sent(pictures: Path) -> None:
    code = (ROOT / "tests" / "support" / "openai_models.py").read_text(encoding="utf-8")
    stand_in = StandIn()
    with running(stand_in) as address:
        options: dict[str, Any] = {"system": "Be short.", "temperature": 0.5, "top_p": 0.9}
        schema = '{"type":"object","properties":{"a":{"type":"string"}}}'
        captioned(config_for(address, pictures, schema=schema, seed=3, **options))
        captioned(config_for(address, pictures))
    requests = json.dumps(stand_in.requests)
    for python in filter(None, (sys.executable, os.environ.get("PENSTOCK_TEST_OPENAI"))):
        done, odd = (
            completed([python, "-c", code], input=given)
            for given in (requests, requests.replace("image_url", "picture_url"))
        )
        assert done.returncode == 0 and done.stdout.strip() == "12", done.stderr
        assert "picture_url" in odd.stderr, "the types are checked within messages, too"


@pytest.mark.slow
def test_ten_kills_give_the_same_outputs(pictures: Path, tmp_path: Path) -> None:
    write_numbered(pictures, 66)
    shuffled, stand_in = random.Random(5), StandIn(seconds=0.2)
    silent: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with running(stand_in) as address:
        config = config_for(address, pictures, slots=4)
        captioned(config)
        undisturbed = captions_of(config)
        where = ("--out", str(tmp_path / "killed"), "--store", str(tmp_path / "other"))
        again = command(address, pictures, "--slots", "4", *where)
        for _ in range(10):
            with subprocess.Popen(again, cwd=ROOT, start_new_session=True, **silent) as process:
                time.sleep(shuffled.uniform(1.0, 5.0))
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        done = completed(again)
    assert done.returncode == 0, done.stderr
    after = read_lines(tmp_path / "killed" / "captions.jsonl")
    assert after == undisturbed and len(after) == 66


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_wait_for_an_overloaded_server(
    pictures: Path, tmp_path: Path, number: int
) -> None:
    with_clip(pictures)
    stand_in = StandIn()
    busy = b"HTTP/1.1 429 Too Many\r\nretry-after: 120\r\ncontent-length: 0\r\n\r\n"
    stand_in.answer = lambda *_: busy
    with running(stand_in) as address:
        request = command(address, pictures, "--out", str(tmp_path / "out"))
        with subprocess.Popen(request, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            waits = re.escape(address) + r" is overloaded: next try at \d\d:\d\d:\d\d, in 120 s"
            assert any(re.search(waits, line) for line in process.stderr)
            began = time.monotonic()
            process.send_signal(number)
            assert process.wait(10) == 4
            assert time.monotonic() - began < 3


@pytest.mark.slow
def test_a_run_goes_on_without_an_address_that_does_not_answer(pictures: Path) -> None:
    dead = "http://127.0.0.1:9/v1"
    with running(StandIn()) as address:
        config = config_for(address, pictures, endpoint=(dead, address))
        assert captioned(config).exit_code == 0
        with_clip(pictures)
        assert captioned(replace(config, revision="1")).exit_code == 0
    note = plan_of(config)["notes"][1]
    assert note.startswith(f"no answer from {dead}") and note.endswith("goes on without it")


@pytest.mark.parametrize("wait", ["0", "0.01", "99999999999999"])
def test_an_overloaded_server_is_asked_again_with_pauses_before_the_run(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, wait: str
) -> None:
    monkeypatch.setattr("stages.ask.servers.PAUSE", (0.05, 0.2))
    requests: list[float] = []
    busy = Reply(503, b"", _wait(wait), "", "")
    known = Reply(200, b'{"data": [{"id": "m", "root": "r"}]}', 0.0, "", "application/json")

    async def get(client: Client, path: str) -> Reply:
        requests.append(time.monotonic())
        return busy if len(requests) <= 3 else known

    monkeypatch.setattr(Client, "get", get)
    served = open_served(config_for("http://127.0.0.1:9/v1", pictures))
    assert served.identity[-1] == "r" and len(requests) == 4
    assert requests[-1] - requests[0] >= 0.05 + 0.1 + 0.2


@pytest.mark.in_turn
@pytest.mark.parametrize(("times", "ends"), [(2, True), (9, False)])
def test_a_cut_answer_at_the_start_is_requested_again(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, times: int, ends: bool
) -> None:
    monkeypatch.setattr("flows.core.checkpoint.served.PAUSE_SECONDS", 0.01)
    with_clip(pictures)
    stand_in = StandIn()
    cut = b"HTTP/1.1 200 OK\r\ncontent-length: 400\r\n\r\n{"
    stand_in.answer = lambda *_: cut if len(stand_in.requests) <= times else None
    with running(stand_in) as address:
        config = config_for(address, pictures)
        if ends:
            assert captioned(config).exit_code == 0
            return
        with pytest.raises(EnvironmentFault, match="the connection broke") as refusal:
            captioned(config)
    assert "log of the server" in refusal.value.hint
