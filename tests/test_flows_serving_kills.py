"""`penstock serve` while its processes are killed and while it is told to end: every request that
was accepted is answered, once, with the vector of its own picture."""

import contextlib
import http.client
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from benchmarks._card_time import encode, pixels_of
from tests.support.attacks import seeded
from tests.support.servers import Answer
from tests.support.serving import Serving, a_picture, serving, vector_of

ASKERS = 6
SETTLE_SECONDS = 0.5
"""A request that was sent so long ago was accepted."""


@dataclass(kw_only=True)
class Asked:
    """Requests that several threads make, one after the other, and what became of them."""

    server: Serving
    answers: list[tuple[bytes, Answer]] = field(default_factory=list)
    lost: list[float] = field(default_factory=list)
    """Times when those were sent that were never answered."""
    done: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def going_on(self, askers: int = ASKERS) -> Iterator[None]:
        threads = [threading.Thread(target=self._ask) for _ in range(askers)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.done.set()
            for thread in threads:
                thread.join()

    def _ask(self) -> None:
        while not self.done.is_set():
            picture, sent = a_picture(), time.monotonic()
            try:
                answer = self.server.embed(picture)
            except (OSError, http.client.HTTPException):
                self.lost.append(sent)
                continue
            self.answers.append((picture, answer))
            if answer.status in (429, 503):
                assert int(answer.headers["retry-after"]) > 0
                time.sleep(0.1)

    def statuses(self) -> Counter[int]:
        return Counter(answer.status for _, answer in self.answers)


def kill(server: Serving, stage: str, draw: random.Random) -> None:
    """Kill a process of a stage at some moment, and wait until there is another one."""
    until = time.monotonic() + 60
    while not (pids := server.pids(stage)):
        assert time.monotonic() < until, f"no process runs {stage}"
        time.sleep(0.01)
    time.sleep(draw.random() * 0.2)
    victim = draw.choice(pids)
    with contextlib.suppress(ProcessLookupError):
        os.kill(victim, signal.SIGKILL)
    while os.path.exists(f"/proc/{victim}") and victim in server.pids(stage):
        time.sleep(0.01)


def were_right(asked: Asked) -> None:
    """Every vector is that of its own picture."""
    for picture, answer in asked.answers:
        if answer.status == 200:
            wanted = encode([pixels_of(picture)])[0]
            others = float(np.abs(vector_of(answer) - wanted).mean())
            assert others < 0.05, others


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_all_are_answered_once_while_the_half_is_killed(tmp_path: Path, kills: int) -> None:
    with serving(tmp_path, "--max-queue", "64") as server:
        asked, draw = Asked(server=server), seeded("kill", kills)
        with asked.going_on():
            for _ in range(kills):
                before = len(asked.answers)
                kill(server, "embed", draw)
                while len(asked.answers) < before + ASKERS:
                    assert server.is_up()
                    time.sleep(0.02)
        assert asked.lost == []
        assert set(asked.statuses()) <= {200, 422, 429, 503}, asked.statuses()
        assert asked.statuses()[200] > kills
        # Two deaths in a row with the same one alone are rare among so many.
        assert asked.statuses()[422] <= kills / 2
        were_right(asked)
        told = server.ask("GET", "/metrics").body.decode()
        assert "penstock_restarts_total" in told


@pytest.mark.slow
def test_all_are_answered_once_while_decoders_are_killed(tmp_path: Path) -> None:
    with serving(tmp_path, "--max-queue", "64") as server:
        asked, draw = Asked(server=server), seeded("kill decoders")
        with asked.going_on():
            for _ in range(20):
                before = len(asked.answers)
                kill(server, "cut_live", draw)
                while len(asked.answers) < before + ASKERS:
                    assert server.is_up()
                    time.sleep(0.02)
        assert asked.lost == []
        assert set(asked.statuses()) <= {200, 422, 429, 503}, asked.statuses()
        were_right(asked)


@pytest.mark.slow
def test_who_was_accepted_is_answered_before_it_ends(tmp_path: Path) -> None:
    with serving(tmp_path, "--max-queue", "64") as server:
        asked = Asked(server=server)
        with asked.going_on(16):
            while len(asked.answers) < 32:
                time.sleep(0.02)
            told = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            code = server.process.wait(60)
        early = [sent for sent in asked.lost if sent < told - SETTLE_SECONDS]
        assert early == []
        assert set(asked.statuses()) <= {200, 429, 503}, asked.statuses()
        assert code == 0


@pytest.mark.slow
def test_it_ends_its_processes_with_itself(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        assert server.embed(a_picture()).status == 200
        pids = server.pids()
        assert len(pids) > 2
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
        until = time.monotonic() + 20
        while any(os.path.exists(f"/proc/{pid}") for pid in pids[1:]):
            assert time.monotonic() < until
            time.sleep(0.05)
