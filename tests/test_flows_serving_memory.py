"""`penstock serve` where memory runs out: batches become smaller, in a process or by starting it
anew, and every request is answered."""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.servers import Answer
from tests.support.serving import Serving, a_picture, serving
from tests.support.tight_half import FITS

TIGHT = [sys.executable, "-m", "tests.support.tight_half", "--tiles", "off"]
AT_ONCE = 24
MOST_TRIES = 20
"""Times that so many are asked for until a batch of them was too large."""


class Room:
    """A server, and how much fits there."""

    def __init__(self, file: Path, server: Serving) -> None:
        self._file = file
        self.server = server

    def fits(self, most: int, ends: str = "goes-on") -> None:
        self._file.write_text(f"{most} {ends}")

    def ask(self, count: int = AT_ONCE) -> list[Answer]:
        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(self.server.embed, [a_picture() for _ in range(count)]))

    def batch(self) -> int:
        halves = json.loads(self.server.ask("GET", "/v1/stats").body)["halves"]
        return int(next(half["batch"] for half in halves if half["name"] == "embed"))


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    (file := tmp_path / "fits").write_text("999 goes-on")
    env = {FITS: str(file)}
    with serving(tmp_path, "--max-wait", "100ms", command=TIGHT, env=env) as server:
        yield Room(file, server)


def statuses(answers: list[Answer]) -> Counter[int]:
    return Counter(answer.status for answer in answers)


@pytest.mark.slow
def test_out_of_memory_at_every_rung_loses_no_request_and_is_remembered(room: Room) -> None:
    assert room.batch() == 32
    for most in (16, 8, 4, 2, 1):
        room.fits(most)
        for _ in range(MOST_TRIES):
            assert statuses(room.ask()) == {200: AT_ONCE}
            if room.batch() <= most:
                break
        assert room.batch() == most
    room.fits(0)
    refused = room.ask(4)
    assert set(statuses(refused)) <= {422, 503}
    assert "memory" in refused[0].body.decode() or "fit" in refused[0].body.decode()
    room.fits(999)
    assert statuses(room.ask(2)) == {200: 2}, "what did not fit then fits now"


@pytest.mark.slow
def test_a_process_that_ends_for_want_of_memory_is_started_with_smaller_batches(
    room: Room,
) -> None:
    room.fits(999)
    assert statuses(room.ask()) == {200: AT_ONCE}
    room.fits(4, "ends")
    assert statuses(room.ask()) == {200: AT_ONCE}
    after = room.batch()
    assert after < 32
    lines = room.server.ask("GET", "/metrics").body.decode().splitlines()
    assert any('penstock_restarts_total{half="embed",why="memory"}' in line for line in lines)
    assert statuses(room.ask()) == {200: AT_ONCE}


@pytest.mark.slow
def test_what_does_not_fit_alone_is_refused_and_the_others_are_answered(room: Room) -> None:
    room.fits(0, "ends")
    assert set(statuses(room.ask(2))) <= {422, 503}
    room.fits(999)
    answers = Counter[int]()
    while answers[200] < 3:
        answers += statuses(room.ask(1))
        assert sum(answers.values()) < 400
    assert set(answers) <= {200, 503}
