"""The ask stage against servers that misbehave: nothing is lost, nothing is filed under another
item, and each failure has its name."""

import asyncio
import heapq
import os
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stages.ask.run
import stages.ask.servers
from artifacts.errors import EnvironmentFault, PenstockError, StageDied, UsageError
from artifacts.frame_fit import FrameFit
from artifacts.records.packs import Record, RecordSet
from artifacts.records.store import open_store
from artifacts.remote.endpoints import endpoint_of, keys_from
from stages.ask import UNANSWERED, AskItem, AskJob
from stages.ask.servers import Client, NoReply, Reply, RequestPace
from stages.process.events import EventReporter, Failed, Warned, event_of
from stages.process.job import job_fields
from tests.support.builders.endpoint import ONCE, TWENTY, StandIn, digest_in, message_of, running


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages.ask.run, "BACKOFF", (0.01, 0.05))
    monkeypatch.setattr(stages.ask.run, "FLUSH_SECONDS", 0.02)
    monkeypatch.setattr(stages.ask.servers, "PAUSE", (0.01, 0.05))
    monkeypatch.setattr(stages.ask.servers, "PATIENCE", 3.0)
    monkeypatch.setattr(stages.ask.servers, "BODY_SECONDS", 0.3)


class Work:
    """Items in a store, and what became of them."""

    def __init__(self, folder: Path, count: int, frames: int = 1) -> None:
        self.url = str(folder / "store")
        self.store = open_store(self.url)
        self.items = []
        records = []
        for at in range(count):
            pixels = np.random.default_rng(at).integers(0, 255, (frames, 8, 8, 3), np.uint8)
            times = [float(step) for step in range(frames)]
            meta = {"times": times, "start": 0.0, "end": 1.0, "height": 8, "width": 8}
            records.append(Record(key=f"{at:064x}", meta=meta, payload=pixels.tobytes()))
            kind = "video" if frames > 1 else "image"
            self.items.append(AskItem(f"{at + 4096:064x}", f"{at:064x}", kind, f"What is {at}?"))
        RecordSet(self.store, "frames", "f" * 64).publish(records)
        self.events: list[Any] = []

    def run(self, *addresses: str, **more: Any) -> None:
        given: dict[str, Any] = {"at_once": 8, "max_new_tokens": 16, "model": "m"} | more
        given |= {"store": self.url, "frames_namespace": "f" * 64, "namespace": "c" * 64}
        job = AskJob(items=self.items, endpoints=list(addresses), fit=FrameFit(), **given)
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        try:
            stages.ask.run.run(job_fields(job), EventReporter(writing))
        finally:
            os.close(writing)
            with os.fdopen(reading) as lines:
                self.events += [event for line in lines if (event := event_of(line))]

    def ask(self, stand_in: StandIn, answer: Any = None, **more: Any) -> None:
        """Run with this server, which gives these answers."""
        stand_in.answer = answer
        with running(stand_in) as address:
            self.run(address, **more)

    @property
    def captions(self) -> dict[str, str]:
        found = RecordSet(self.store, "captions", "c" * 64)
        return {key: found.meta(key)["caption"] for key in sorted(found.keys())}

    @property
    def stored_failures(self) -> dict[str, str]:
        found = RecordSet(self.store, "failures", "c" * 64)
        return {key: found.meta(key)["kind"] for key in sorted(found.keys())}

    @property
    def failed(self) -> dict[str, Failed]:
        return {event.media: event for event in self.events if isinstance(event, Failed)}


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path, 12)


@pytest.mark.slow
def test_twenty_faults_lose_nothing_and_mix_nothing_up(tmp_path: Path) -> None:
    work, stand_in = Work(tmp_path, 2 * len(TWENTY)), StandIn(TWENTY)
    work.ask(stand_in)
    digests = dict(zip(stand_in.names, map(digest_in, stand_in.requests), strict=True))
    named = {"400": "refused-request", "filter": "refused", "surrogate": "garbled"}
    named["null"] = "not-finite?"
    for at, item in enumerate(work.items):
        digest, behaviour = digests[item.key], TWENTY[at % len(TWENTY)]
        if behaviour in named:
            assert work.stored_failures[item.key] == named[behaviour]
            assert work.failed[item.key].message.isprintable()
        else:
            assert work.captions[item.key] == f"caption {digest}", behaviour
    assert len(work.captions) + len(work.stored_failures) == len(work.items)
    before = len(stand_in.requests)
    with running(stand_in, stand_in.port) as address:
        work.run(address)
    assert len(stand_in.requests) == before


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["500", "wrong json", "cut body", "no choices"])
def test_an_item_that_stays_unanswered_fails_alone_and_is_asked_again(
    work: Work, fault: str
) -> None:
    stand_in, bad = StandIn(), work.items[3].prompt
    stand_in.answer = lambda request, *_: ONCE[fault] if bad in str(request) else None
    with running(stand_in) as address:
        work.run(address)
        assert list(work.failed) == [work.items[3].key]
        assert work.failed[work.items[3].key].kind == UNANSWERED
        assert len(work.captions) == 11 and not work.stored_failures
        stand_in.answer = None
        work.run(address)
    assert len(work.captions) == 12
    assert max(stand_in.times.values()) == stages.ask.run.TRIES + 1


ENDS: dict[str | None, tuple[str, str | None]] = {
    **dict.fromkeys(("stop", "STOP", "eos_token", "end_turn"), ("stop", None)),
    **dict.fromkeys(("length", "model_length", "max_tokens", "MAX_TOKENS"), ("length", None)),
    "pause_turn": ("stop", "pause_turn"),
    None: ("stop", "none"),
}
"""Word of a server for the end of an answer → what is stored of it, and the unknown word. From
documentation of OpenAI, Anthropic, Gemini and Mistral, and from TGI."""


def answered(folder: Path, usage: dict[str, Any] | None = None, **choice: Any) -> Work:
    """One item, which a server answers so."""
    work = Work(folder, 1)

    def answer(request: dict[str, Any], digest: str, before: int) -> Any:
        found = message_of(digest)
        found["choices"][0] |= choice
        return 200, {**found, "usage": usage or {}}

    work.ask(StandIn(), answer)
    return work


@pytest.mark.parametrize("reason", ENDS)
def test_the_reason_for_an_end_is_understood_in_every_spelling(
    reason: str | None, tmp_path: Path
) -> None:
    work = answered(tmp_path, finish_reason=reason)
    meta = RecordSet(work.store, "captions", "c" * 64).meta(work.items[0].key)
    assert (meta["ended"], meta.get("reason")) == ENDS[reason]


EMPTY: dict[str, Any] = {"message": {"content": ""}}
REFUSING = ("SAFETY", "content_filter", "refusal", "PROHIBITED_CONTENT")


@pytest.mark.parametrize(
    ("choice", "kind"),
    [
        *(({"finish_reason": reason}, "refused") for reason in REFUSING),
        ({"finish_reason": "length", **EMPTY}, "not-finite?"),
        ({"finish_reason": "stop", **EMPTY}, "empty"),
    ],
)
def test_an_answer_that_is_withheld_or_empty_is_a_failure_of_its_kind(
    choice: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    work = answered(tmp_path, **choice)
    assert not work.captions and [*work.stored_failures.values()] == [kind]


REASONED: dict[str, dict[str, Any]] = {
    "deepseek": {"message": {"content": "", "reasoning_content": "Hm."}},
    "openrouter": {"message": {"content": None, "reasoning": "Hm."}},
    "mistral": {"message": {"content": [{"type": "thinking", "thinking": []}]}},
    "openai": EMPTY,
}


@pytest.mark.parametrize("form", REASONED)
def test_an_answer_that_is_reasoning_alone_says_so(form: str, tmp_path: Path) -> None:
    counted = {"completion_tokens": 16, "completion_tokens_details": {"reasoning_tokens": 16}}
    usage = counted if form == "openai" else None
    work = answered(tmp_path, usage, finish_reason="length", **REASONED[form])
    assert [*work.stored_failures.values()] == ["thinking"]
    assert "raise --max-new-tokens" in next(iter(work.failed.values())).message


@pytest.mark.parametrize("how", ["error", "abort", "an error beside the choices"])
def test_an_answer_that_a_server_did_not_finish_is_asked_for_again(
    how: str, tmp_path: Path
) -> None:
    work, stand_in = Work(tmp_path, 1), StandIn()

    def answer(request: dict[str, Any], digest: str, before: int) -> Any:
        found = message_of(digest)
        if before:
            return 200, found
        found["choices"][0]["message"]["content"] = "half of"
        if how == "an error beside the choices":
            return 200, {**found, "error": {"message": "upstream failed", "code": 502}}
        found["choices"][0]["finish_reason"] = how
        return 200, found

    work.ask(stand_in, answer)
    assert len(stand_in.requests) == 2
    assert all(text.startswith("caption ") for text in work.captions.values())


def test_a_busy_server_is_asked_for_less(work: Work) -> None:
    stand_in = StandIn(seconds=0.02)
    work.ask(stand_in, lambda *_: (429, {}) if stand_in.at_once > 2 else None)
    assert len(work.captions) == 12


def test_two_servers_share_the_work_and_one_may_be_down(tmp_path: Path) -> None:
    work, first, second = Work(tmp_path, 40), StandIn(seconds=0.02), StandIn(seconds=0.02)
    with running(first) as one, running(second) as other:
        work.run(one, other, "http://127.0.0.1:9/v1", at_once=4)
    assert len(work.captions) == 40 and first.requests and second.requests


@pytest.mark.in_turn
@pytest.mark.parametrize(
    ("status", "error", "text"),
    [
        (401, EnvironmentFault, "wants a key: HTTP 401 no …"),
        (403, EnvironmentFault, "wants a key"),
        (404, UsageError, "has no model m"),
        (307, EnvironmentFault, "redirects to another address, which is not followed"),
        (204, EnvironmentFault, "sends no answer"),
        (200, EnvironmentFault, r"no chat completion: no ….*asleep"),
    ],
)
def test_what_concerns_all_items_ends_the_stage(
    work: Work, status: int, error: type[PenstockError], text: str
) -> None:
    other, body = StandIn(), {"error": {"message": "no hf_abcdefghijklmnop\x1b[2J asleep"}}
    with running(other) as elsewhere, pytest.raises(error, match=text) as fault:
        to = f"location: {elsewhere}/chat/completions\r\ncontent-length: 0\r\n\r\n"
        moved = f"HTTP/1.1 307 X\r\n{to}".encode()
        work.ask(StandIn(), lambda *_: moved if status == 307 else (status, body))
    assert str(fault.value).isprintable()
    assert not other.paths and not work.stored_failures and not work.captions


def test_a_request_that_no_item_can_make_ends_the_stage(work: Work) -> None:
    with pytest.raises(StageDied, match="response_format is not"):
        work.ask(StandIn(), lambda *_: (400, {"error": "response_format is not supported"}))
    assert not work.stored_failures


@pytest.mark.parametrize("change", ["model", "system_fingerprint"])
def test_a_changed_model_ends_the_stage(work: Work, change: str) -> None:
    stand_in = StandIn()

    def answer(request: dict[str, Any], digest: str, before: int) -> Any:
        return 200, message_of(digest) | ({change: "another"} if len(stand_in.requests) > 6 else {})

    with pytest.raises(EnvironmentFault, match=r"the model changed while it was used: .* m"):
        work.ask(stand_in, answer, at_once=1)
    assert len(work.captions) == 6


def test_a_change_since_an_earlier_process_ends_the_stage(work: Work) -> None:
    with (
        running(StandIn()) as address,
        pytest.raises(EnvironmentFault, match="answered as m f0, then as m f1"),
    ):
        work.run(address, seen={address: ["m", "f0"]})


@pytest.mark.slow
def test_no_thread_goes_on_when_the_stage_has_ended(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, encoding = stages.ask.run.media_of, threading.Event()

    def slow(*given: Any, **more: Any) -> bytes:
        time.sleep(1.0 * encoding.is_set())  # the second one, while the first is answered
        encoding.set()
        return encode(*given, **more)

    monkeypatch.setattr(stages.ask.run, "media_of", slow)
    with running(StandIn(seconds=0.2)) as address:
        with pytest.raises(EnvironmentFault, match="answered as m f0, then as m f1"):
            work.run(address, seen={address: ["m", "f0"]})
        assert [each.name for each in threading.enumerate() if "PoolExec" in each.name] == []


def test_a_store_that_cannot_be_written_ends_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise EnvironmentFault("the disk is full")

    work, stand_in = Work(tmp_path, 60), StandIn(seconds=0.05)
    monkeypatch.setattr(stages.ask.run.Asking, "_publish", full)
    with running(stand_in) as address, pytest.raises(EnvironmentFault, match="disk is full"):
        work.run(address, at_once=1)
    assert len(stand_in.requests) < 60


@pytest.mark.slow
def test_a_server_that_is_down_ends_the_stage(work: Work) -> None:
    with pytest.raises(EnvironmentFault, match=r"no answer from http://127.0.0.1:9 for 3 s"):
        work.run("http://127.0.0.1:9/v1")
    assert not work.failed


def test_a_server_that_comes_back_soon_is_waited_for(work: Work) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    stand_in = StandIn()
    with ThreadPoolExecutor(1) as beside:
        asking = beside.submit(work.run, f"http://127.0.0.1:{port}/v1")
        time.sleep(0.5)
        assert not asking.done()
        with running(stand_in, port):
            asking.result(20)
    assert len(work.captions) == 12 and not work.failed


def test_answers_that_break_a_schema_fail_by_name_and_one_fence_is_no_part_of_them(
    work: Work,
) -> None:
    good = '{"a": "``` x"}'
    fenced = [f"```json\n{good}\n```", f"\n```\r\n{good}\n  ```\n", f"```json {good}```", good]
    refused = [f"Here: ```json\n{good}\n```", f"```json\n```json\n{good}\n```\n```"]
    answers = [*fenced, *fenced, *refused, '{"a": 1}', "{}"]
    stand_in = StandIn()

    def answer(request: dict[str, Any], digest: str, before: int) -> Any:
        assert request["response_format"]["json_schema"]["schema"]["required"] == ["a"]
        found = message_of(digest)
        found["choices"][0]["message"]["content"] = answers[len(stand_in.requests) - 1]
        return 200, found

    schema = '{"type":"object","properties":{"a":{"type":"string"}},"required":["a"]}'
    work.ask(stand_in, answer, schema=schema, at_once=1)
    assert [*work.captions.values()] == [good] * 8
    assert [*work.stored_failures.values()] == ["schema"] * 4


def test_json_that_an_endpoint_cut_is_a_failure_of_its_own_kind(work: Work) -> None:
    schema = '{"type":"object","properties":{"a":{"type":"string"}}}'
    answers = [('{"a": "x"}', "length"), ('{"a": "x', "length"), ('{"a": "x', "stop")]
    stand_in = StandIn()

    def answer(request: dict[str, Any], digest: str, before: int) -> Any:
        text, reason = answers[(len(stand_in.requests) - 1) % 3]
        found = message_of(digest)
        found["choices"][0] |= {"message": {"content": text}, "finish_reason": reason}
        return 200, found

    work.ask(stand_in, answer, schema=schema, at_once=1)
    assert [*work.captions.values()] == ['{"a": "x"}'] * 4
    assert sorted(work.stored_failures.values()) == ["cut"] * 4 + ["schema"] * 4


def test_frames_are_sent_as_pictures_or_as_one_video(tmp_path: Path) -> None:
    work, stand_in = Work(tmp_path, 2, frames=4), StandIn()
    work.ask(stand_in, system="Be short.", seed=7, sampling={"temperature": 0.5})
    system, user = stand_in.requests[0]["messages"]
    assert system == {"role": "system", "content": "Be short."}
    assert [part["type"] for part in user["content"]] == ["image_url"] * 4 + ["text"]
    seeds = {request["seed"] for request in stand_in.requests}
    assert len(seeds) == 2 and stand_in.requests[0]["temperature"] == 0.5
    Work(tmp_path / "other", 2, frames=4).ask(stand_in, video=True)
    content = stand_in.requests[-1]["messages"][0]["content"]
    assert [part["type"] for part in content] == ["video_url", "text"]


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text("# mine\n127.0.0.1 = sk-secret-0123456789\n", encoding="utf-8")
    path.chmod(0o600)
    return path


def test_an_echoed_key_is_neither_shown_nor_stored(work: Work, key_file: Path) -> None:
    stand_in = StandIn()

    def answer(request: dict[str, Any], digest: str, before: int) -> Any:
        key = stand_in.headers[-1]["authorization"]
        if int(digest, 16) % 5 == 0:
            return f"HTTP/1.1 {key}\r\n\r\n".encode()
        if int(digest, 16) % 2:
            return 400, {"error": {"message": f"bad {key} \x1b[2J {'x' * 5000}"}}
        found = message_of(digest, fingerprint=f"f {key}")
        if int(digest, 16) % 3:
            found["choices"][0]["message"]["content"] = f"I saw {key}"
        return 200, found

    work.ask(stand_in, answer, keys_file=str(key_file))
    assert {h["authorization"] for h in stand_in.headers} == {"Bearer sk-secret-0123456789"}
    for path in (Path(work.url)).rglob("*"):
        assert path.is_dir() or b"sk-secret" not in path.read_bytes()
    assert "sk-secret" not in str(work.events)
    assert all(len(one.message) < 500 for one in work.failed.values()) and work.failed


@pytest.mark.parametrize(("slots", "least", "most"), [(1, 4, 12), (20, 16, 48), (1000, 64, 64)])
def test_the_pace_settles_at_what_a_server_can_do(slots: int, least: int, most: int) -> None:
    """A server with so many slots that takes a second for each answer."""
    pace, now, limits = RequestPace(64), time.monotonic(), list[int]()
    free, flying = [now] * slots, list[tuple[float, float]]()
    while len(limits) < 600:
        while len(flying) < pace.limit:
            ended = max(now, heapq.heappop(free)) + 1  # the first slot that is free
            heapq.heappush(free, ended)
            heapq.heappush(flying, (ended, now))
        now, sent = heapq.heappop(flying)
        pace.succeeded(sent, now)
        limits.append(pace.limit)
    assert least <= min(limits[300:]) and max(limits[300:]) <= most, limits
    pace.overloaded(now, now)
    assert pace.limit == limits[-1] // 2


def busy(wait: str = "") -> bytes:
    """An answer of an overloaded server, which may ask for a wait."""
    asked = f"retry-after: {wait}\r\n" if wait else ""
    return f"HTTP/1.1 429 X\r\n{asked}content-length: 0\r\n\r\n".encode()


@pytest.mark.slow
def test_a_long_wait_is_said_and_an_absurd_one_is_not_obeyed(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages.ask.servers, "SHOWN_WAIT_SECONDS", 0.4)
    told_waits = {"inf": 0.0, "nan": 0.0, "1e9": 0.0, "-3": 0.0, "": 0.0, "7": 7.0, "900": 300.0}
    assert {text: stages.ask.servers._wait(text) for text in told_waits} == told_waits
    stand_in = StandIn()

    def answer(*_: Any) -> Any:
        count = len(stand_in.requests)
        return busy("inf" if count < 3 else "0.6") if count < 5 else None

    work.ask(stand_in, answer, at_once=1)
    texts = [event.text for event in work.events if isinstance(event, Warned)]
    assert len(texts) == 2 and len(work.captions) == 12
    address = re.escape(f"http://127.0.0.1:{stand_in.port}/v1")
    pattern = address + r" is overloaded: next try at \d\d:\d\d:\d\d, in 1 s"
    assert all(re.fullmatch(pattern, text) for text in texts), texts


@pytest.mark.slow
@pytest.mark.parametrize("wait", ["0.3", ""])
def test_a_server_that_never_answers_ends_the_stage_however_it_requests_waits(
    wait: str, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages.ask.servers, "MAX_SILENCE", 1.0, raising=False)
    stand_in = StandIn()
    with pytest.raises(EnvironmentFault, match="no answer from"):
        work.ask(stand_in, lambda *_: busy(wait), at_once=1)
    assert len(stand_in.requests) < 50, "requests in vain"
    assert not work.captions and not work.failed


@pytest.mark.slow
@pytest.mark.parametrize("wait", ["0", "-5", "0.01", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_a_requested_wait_shorter_than_the_own_pause_makes_no_storm(
    wait: str, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages.ask.servers, "PAUSE", (0.4, 1.0))
    stand_in, ends = StandIn(), time.monotonic() + 2
    down = busy(wait).replace(b"429", b"503")
    work.ask(stand_in, lambda *_: down if time.monotonic() < ends else None, at_once=1)
    assert len(stand_in.requests) <= 12 + 4, "requests in vain"
    assert len(work.captions) == 12 and not work.failed


@pytest.mark.slow
def test_pauses_that_a_server_requests_between_answers_end_nothing(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages.ask.servers, "MAX_SILENCE", 1.0, raising=False)
    stand_in = StandIn()
    work.ask(stand_in, lambda *_: busy("0.3") if len(stand_in.requests) % 2 else None, at_once=1)
    assert len(work.captions) == 12


def test_a_web_page_ends_the_stage_with_its_words(work: Work, key_file: Path) -> None:
    page = b"<html>\x1b[2J sk-secret-0123456789 Sign in"
    kind = f"content-type: text/html; charset=utf-8\r\ncontent-length: {len(page)}\r\n\r\n"
    answer = b"HTTP/1.1 200 OK\r\n" + kind.encode() + page
    with pytest.raises(EnvironmentFault, match="a web page") as fault:
        work.ask(StandIn(), lambda *_: answer, keys_file=str(key_file))
    text = str(fault.value)
    assert "text/html" in text and "Sign in" in text and "/v1" in text
    assert text.isprintable() and "sk-secret" not in text


@pytest.mark.parametrize("answers", [True, False])
def test_a_server_may_answer_or_leave_before_it_has_read_the_request(answers: bool) -> None:
    """It sends its answer, whose end is that of the connection, and goes on without reading."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as beside:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(100)
                if answers:
                    connection.sendall(b"HTTP/1.0 503 Busy\r\nRetry-After: 7\r\n\r\nfull")
                connection.shutdown(socket.SHUT_WR)
                done.wait(20)

        async def ask() -> Reply:
            endpoint = endpoint_of(f"http://127.0.0.1:{listener.getsockname()[1]}/v1")
            return await Client(endpoint, keys_from("")).post(bytes(12 << 20))

        done = threading.Event()
        serving = beside.submit(serve)
        try:
            if answers:
                reply = asyncio.run(ask())
                assert (reply.status, reply.body, reply.wait) == (503, b"full", 7.0)
            else:
                with pytest.raises(NoReply, match="the connection broke"):
                    asyncio.run(ask())
            assert not serving.done()
        finally:
            done.set()


def test_what_arrives_before_a_connection_breaks_is_read() -> None:
    async def first() -> bytes:
        reader = stages.ask.servers._Reader()
        reader.feed_data(b"an answer")
        reader.set_exception(ConnectionResetError("reset"))
        data = await reader.read(100)
        with pytest.raises(ConnectionResetError, match="reset"):
            await reader.read(100)
        return data

    assert asyncio.run(first()) == b"an answer"
