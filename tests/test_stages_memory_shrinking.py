"""Batches that do not fit are gone through in pieces that do, and the size that fits is kept."""

import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest

from artifacts.errors import CannotFit, UsageError
from stages.memory.shrinking import Shrinking, pieces, smaller, wanted_bytes
from tests.waves import events

WORDS = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 8 GiB"


class Machine:
    """Computes at most `room` items at once, and none whose name is among `giants`."""

    def __init__(self, room: int, giants: str = "") -> None:
        self.room = room
        self.giants = giants
        self.seen: list[str] = []
        """What it was asked to compute, a text a call."""

    def __call__(self, items: Sequence[str]) -> str:
        self.seen.append("".join(items))
        if len(items) > self.room or set(items) & set(self.giants):
            raise RuntimeError(WORDS)
        return "".join(items).upper()


def go(machine: Machine, *batches: str) -> tuple[list[str], list[dict[str, Any]]]:
    """What came out, and what was told."""
    with events() as (report, told):
        shrinking = Shrinking(report, partial(machine, batches[-1][-1:]))
        found = [m for b in batches for _, m in shrinking.through(b, str, machine)]
    return found, told


def test_a_batch_that_fits_goes_through_whole() -> None:
    assert go(Machine(8), "abcdefgh", "ij") == (["ABCDEFGH", "IJ"], [])


def test_a_batch_that_does_not_fit_is_halved_and_the_size_is_kept() -> None:
    machine = Machine(3)
    found, told = go(machine, "abcdefgh", "ijklm")
    assert found == ["AB", "CD", "EF", "GH", "IJ", "KL", "M"]
    assert machine.seen[:3] == ["abcdefgh", "abcd", "ab"]
    assert [(e["event"], e["failed"], e["batch"]) for e in told] == [("rung", 8, 4), ("rung", 4, 2)]
    assert all(WORDS in e["error"] for e in told)


@pytest.mark.parametrize("largest", [3, 6, 7, 8, 12])
@pytest.mark.parametrize("room", [1, 2, 3, 5])
def test_pieces_hold_what_they_hold_when_the_size_is_chosen_beforehand(
    largest: int, room: int
) -> None:
    batch = "abcdefghijkl"[:largest]
    found, _ = go(Machine(room), batch)
    sizes = [largest]
    while sizes[-1] > room:
        sizes.append(smaller(sizes[-1]))
    assert found == [str(piece).upper() for piece in pieces(batch, sizes[-1])]


def test_an_item_that_does_not_fit_alone_is_told_and_the_others_go_on() -> None:
    found, told = go(Machine(8, giants="c"), "abcd", "efgh")
    assert found == ["AB", "D", "E", "F", "G", "H"]
    (large,) = [event for event in told if event["event"] == "too_large"]
    assert (large["key"], large["wanted_bytes"]) == ("c", int(2.5 * 2**30))


def test_when_nothing_fits_it_ends_after_a_few_tries() -> None:
    machine = Machine(0)
    with pytest.raises(CannotFit, match="not even single items fit"):
        go(machine, "abcd", "efgh")
    assert machine.seen == ["abcd", "ab", "a", "b", "c", "h"]


def test_that_the_largest_come_first_is_not_taken_for_a_lack_of_memory() -> None:
    machine = Machine(8, giants="abcde")
    found, told = go(machine, "abcd", "efgh")
    assert found == ["F", "G", "H"]
    assert [event["key"] for event in told if event["event"] == "too_large"] == list("abcde")


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    def broken(items: Sequence[str]) -> str:
        raise ValueError("shapes differ")

    def refused(items: Sequence[str]) -> str:
        raise UsageError("no such thing as CUDA out of memory")

    for compute, kind in ((broken, ValueError), (refused, UsageError)):
        with events() as (report, _), pytest.raises(kind):
            list(Shrinking(report, list).through("ab", str, compute))


def test_what_a_failed_batch_held_is_let_go_before_its_halves_are_tried() -> None:
    class Tensor:
        pass

    held: list[weakref.ref[Tensor]] = []

    def compute(items: Sequence[str]) -> str:
        assert all(reference() is None for reference in held)
        activation = Tensor()
        held.append(weakref.ref(activation))
        if len(items) > 1:
            raise MemoryError("Unable to allocate 3 bytes")
        return "".join(items)

    with events() as (report, _):
        assert [m for _, m in Shrinking(report, list).through("abcd", str, compute)] == list("abcd")


@pytest.mark.parametrize(
    ("words", "size"),
    [
        (WORDS, 5 << 29),
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes.", 4096),
        ("_ArrayMemoryError: Unable to allocate 7.50 MiB for an array", 7_864_320),
        ("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)", 0),
    ],
)
def test_what_could_not_be_had_is_read_off_the_allocator_s_words(words: str, size: int) -> None:
    assert wanted_bytes(words) == size
