"""`penstock serve` on a stand-in for a GPU: whose the card is, and what halves take of it."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

import penstock_demo
from artifacts.disk.locks import try_hold
from tests.support import gpus
from tests.support.commands import begun
from tests.support.fake_gpu import state
from tests.support.fake_gpu.state import Machine
from tests.support.pipeline import PENSTOCK, SECONDS, Place
from tests.support.servers import Answer
from tests.support.serving import Serving, a_picture, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
CLIP = penstock_demo.CLIPS / "clip-01.mp4"
LABELS = "red circle,blue square"
SERVE = [*PENSTOCK, "serve"]
WAIT_SECONDS = 240.0


class Desk:
    """A machine with a card, on which a server and a command are started."""

    def __init__(self, folder: Path, machine: Machine) -> None:
        self.folder = folder
        self.cards = machine.write(folder / "gpu")
        self.locks = folder / "locks"
        self.locks.mkdir()
        (folder / "clips").mkdir()
        (folder / "clips" / CLIP.name).write_bytes(CLIP.read_bytes())
        own = {"XDG_CACHE_HOME": str(folder / "cache"), "PENSTOCK_LOCKS": str(self.locks)}
        self.environment = gpus.environment(self.cards, **own)

    @property
    def lock(self) -> Path:
        (found,) = self.locks.glob("penstock-GPU-*.lock")
        return found

    def serve(self, *options: str) -> AbstractContextManager[Serving]:
        return serving(self.folder, *options, command=SERVE, env=self.environment)

    def holders(self) -> dict[int, int]:
        """Process id → bytes that it has of the card."""
        return {pid: size for pid, (_, size) in state.held(self.cards).items()}

    def limits(self, pids: set[int]) -> list[float]:
        """Bytes that each of these processes may take of the card, with its context."""
        machine = gpus.plain()
        outside = machine.context_bytes + 2 * machine.lazy_bytes
        return [
            float(call.arguments[0]) * machine.gpus[0].total_bytes + outside
            for call in gpus.calls(self.cards)
            if call.name == "set_per_process_memory_fraction" and call.pid in pids
        ]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path, gpus.plain())


def halves(server: Serving) -> dict[str, dict[str, Any]]:
    values = json.loads(server.ask("GET", "/v1/stats").body)["halves"]
    return {half["name"]: half for half in values}


def resident(server: Serving) -> set[str]:
    return {name for name, half in halves(server).items() if half["state"] == "resident"}


def until(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while not true():
        assert time.monotonic() < end, f"not so after {WAIT_SECONDS} s: {what}"
        time.sleep(0.1)


def message_of(answer: Answer) -> Any:
    assert answer.status == 200, answer.body
    return json.loads(answer.body)


def caption(server: Serving, body: bytes, prompt: str = "") -> Answer:
    return server.ask("POST", f"/v1/caption?prompt={prompt}", body, seconds=WAIT_SECONDS)


def leave_the_card(server: Serving, desk: Desk) -> None:
    """The parent of all halves has nothing of it, and not what it would take to."""
    pid = server.process.pid
    assert pid not in gpus.contexts(desk.cards)
    assert "torch" not in Path(f"/proc/{pid}/maps").read_text()


def test_a_server_has_the_card_while_it_is_used_and_gives_it_back(desk: Desk) -> None:
    place = Place(clips=desk.folder / "clips", out=desk.folder / "out", store=desk.folder / "other")
    models = ("--model", "demo", "--caption-model", "demo")
    with desk.serve(*models, "--labels", LABELS, "--idle", "0.2") as server:
        until(lambda: len(desk.holders()) > 1, "halves are loaded")
        text = message_of(caption(server, CLIP.read_bytes()))["captions"][0]["caption"]
        labels = message_of(server.ask("POST", "/v1/label?threshold=0", a_picture()))["labels"]
        vector = message_of(server.embed(a_picture()))
        assert text and vector["dimensions"] == 128
        assert {each["label"] for each in labels} <= set(LABELS.split(","))
        assert desk.lock.read_text().split() == [str(server.process.pid)]
        at_work = desk.holders()
        assert set(at_work) <= set(server.pids())
        taken = {h["memory_bytes"] for h in halves(server).values() if h["state"] == "resident"}
        machine = gpus.plain()
        assert all(machine.context_bytes < size < 2 * machine.context_bytes for size in taken)

        log = desk.folder / "batch.log"
        with log.open("wb") as file:
            batch = begun(place.command(), env=desk.environment, stdout=file)
        waits = f"waiting for CUDA:0, held by process {server.process.pid}"
        while waits not in log.read_text():
            assert batch.poll() is None, log.read_text()
            message_of(caption(server, a_picture()))
        assert batch.wait(SECONDS) == 0, log.read_text()
        assert not resident(server), "it had the card while a command computed on it"
        assert [each["caption"] for each in place.captions()] == [text]
        assert desk.holders() == {}, "the card is as it was"

        other = try_hold(desk.lock)
        assert other is not None, "the lock is free"
        with ThreadPoolExecutor(1) as pool, other:
            first = pool.submit(caption, server, a_picture())
            until(lambda: server.ask("GET", "/readyz").status == 503, "it waits")
            ready = server.ask("GET", "/readyz")
            who = desk.lock.read_text().strip()
            assert json.loads(ready.body)["why"] == f"the device is used by process {who}"
            refused = caption(server, a_picture())
            assert refused.status == 503 and int(refused.headers["retry-after"]) > 0
            assert f"the device is used by process {who}" in refused.body.decode()
            assert desk.holders() == {}
            other.close()
            assert message_of(first.result())["captions"]
        assert desk.lock.read_text().split() == [str(server.process.pid)]
        leave_the_card(server, desk)
    assert desk.holders() == {}
    assert "failed" not in server.log.read_text(), server.log.read_text()
    assert "memory not released" not in server.log.read_text(), server.log.read_text()
