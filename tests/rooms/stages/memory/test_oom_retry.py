"""Batches that do not fit are gone through in pieces that do; and whose fault an error is: the
item's, the stage's, or the machine's."""

import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from artifacts.errors import CannotFit, StageDied, UsageError
from artifacts.records.packs import Record, RecordSet
from artifacts.records.store import open_store
from stages.decode.engines.inflight.pool_shape import PLAIN
from stages.decode.engines.inflight.prefill import PrefilledSequence, prefill_row
from stages.decode.engines.inflight.scheduler import InflightScheduler, RequestPrefetcher
from stages.decode.generation import DecodeItem
from stages.decode.protocol import DecodeRequest
from stages.memory.oom_retry import (
    MAX_IMAGES,
    ItemFault,
    ItemFaults,
    OomRetry,
    blocks,
    catch_oom,
    item_fault,
    next_sizes,
    requested_bytes,
    smaller,
    split_batch,
)
from stages.models.encoding import EncodeItem
from stages.models.encoding.run import Refusal, read_chunk
from tests.support.tiny_families.in_slots import rows_of_variant
from tests.support.waves import events, no_faults

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
    with events() as (report, message):
        shrinking = OomRetry(report, partial(machine, batches[-1][-1:]), no_faults())
        found = [m for b in batches for _, m in shrinking.run_batch(b, str, machine)]
    return found, message


def test_a_batch_that_does_not_fit_is_halved_and_the_size_is_kept() -> None:
    machine = Machine(3)
    assert go(Machine(8), "abcdefgh", "ij") == (["ABCDEFGH", "IJ"], [])
    found, message = go(machine, "abcdefgh", "ijklm")
    assert found == ["AB", "CD", "EF", "GH", "IJ", "KL", "M"]
    assert machine.seen[:3] == ["abcdefgh", "abcd", "ab"]
    assert all(e["event"] == "BatchShrunk" and WORDS in e["error"] for e in message)
    assert [(e["failed"], e["batch"]) for e in message] == [(8, 4), (4, 2)]


@pytest.mark.parametrize(
    "largest", [7, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 12))]
)
@pytest.mark.parametrize("room", [1, 2, 3, 5])
def test_pieces_are_those_of_a_size_chosen_beforehand(largest: int, room: int) -> None:
    batch = "abcdefghijkl"[:largest]
    found, _ = go(Machine(room), batch)
    sizes = [largest]
    while sizes[-1] > room:
        sizes.append(smaller(sizes[-1]))
    assert found == [str(piece).upper() for piece in split_batch(batch, sizes[-1])]


def test_an_item_that_does_not_fit_alone_is_told_and_the_others_go_on() -> None:
    found, message = go(Machine(8, giants="c"), "abcd", "efgh")
    assert found == ["AB", "D", "E", "F", "G", "H"]
    (large,) = [event for event in message if event["event"] == "TooLarge"]
    assert (large["key"], large["wanted_bytes"]) == ("c", int(2.5 * 2**30))


def test_when_nothing_fits_it_ends_after_a_few_tries() -> None:
    machine = Machine(0)
    with pytest.raises(CannotFit, match="not even single items fit"):
        go(machine, "abcd", "efgh")
    assert machine.seen == ["abcd", "ab", "a", "b", "c", "h"]


def test_that_the_largest_come_first_is_not_taken_for_a_lack_of_memory() -> None:
    machine = Machine(8, giants="abcde")
    found, message = go(machine, "abcd", "efgh")
    assert found == ["F", "G", "H"]
    assert [event["key"] for event in message if event["event"] == "TooLarge"] == list("abcde")


class Tower:
    """Computes batches together: at most `most` items at once, and `room` a batch."""

    def __init__(self, most: int, room: int = 99) -> None:
        self.most = most
        self.machine = Machine(room)
        self.seen: list[list[str]] = []

    def __call__(self, batches: Sequence[Sequence[str]]) -> list[str]:
        self.seen.append(["".join(batch) for batch in batches])
        if sum(map(len, batches)) > self.most:
            raise RuntimeError(WORDS)
        return [self.machine(batch) for batch in batches]


def go_together(
    tower: Tower, block: int, *batches: str
) -> tuple[list[str], list[tuple[int, int, int]]]:
    """What came out, and the rungs that were told: batch, block, how many failed."""
    with events() as (report, message):
        shrinking = OomRetry(report, partial(tower, [batches[-1][-1:]]), no_faults())
        runs = [shrinking.run_block(b, block, str, tower) for b in blocks(batches, block)]
        found = [made for run in runs for _, made in run]
    shrunk = [event for event in message if event["event"] == "BatchShrunk"]
    return found, [(event["batch"], event["block"], event["failed"]) for event in shrunk]


def test_batches_go_through_together_as_far_as_a_block_goes() -> None:
    tower = Tower(99)
    batches = ["abcd", "efgh", "ij", "kl", "mnop"]
    found, message = go_together(tower, 8, *batches)
    assert found == [batch.upper() for batch in batches] and message == []
    assert tower.seen == [["abcd", "efgh"], ["ij", "kl", "mnop"]]


def test_items_of_many_pictures_make_smaller_blocks() -> None:
    clips = ["ab", "cd", "ef", "gh"]
    assert list(blocks(clips, 256, lambda _: MAX_IMAGES // 4)) == [["ab", "cd"], ["ef", "gh"]]
    assert list(blocks(clips, 256, lambda _: MAX_IMAGES + 1)) == [[clip] for clip in clips]
    assert list(blocks(clips, 3, lambda _: 1)) == [[clip] for clip in clips]
    assert list(blocks(clips, 256)) == [clips]


@pytest.mark.parametrize("block", [0, 1, 3])
def test_a_block_that_holds_no_batch_is_a_batch(block: int) -> None:
    tower = Tower(99)
    assert go_together(tower, block, "abcd", "efgh")[0] == ["ABCD", "EFGH"]
    assert tower.seen == [["abcd"], ["efgh"]]


def test_of_batches_that_do_not_fit_together_fewer_go_and_none_is_cut() -> None:
    letters = [chr(ord("a") + at) * 4 for at in range(16)]
    tower = Tower(20)
    found, message = go_together(tower, 64, *letters)
    assert found == [batch.upper() for batch in letters]
    assert message == [(4, 16, 64)]
    assert [len(some) for some in tower.seen] == [16, 4, 4, 4, 4]


def test_batches_are_cut_when_few_do_not_fit_together() -> None:
    tower = Tower(8)
    found, message = go_together(tower, 16, "abcdefgh", "ijklmnop", "qrst")
    assert "".join(found).lower() == "abcdefghijklmnopqrst"
    assert found[0] == "A" and message[-1][:2] == (1, 4)
    assert [block for _, block, _ in message] == sorted((b for _, b, _ in message), reverse=True)


def test_a_batch_too_large_by_itself_is_cut_among_others_too() -> None:
    tower = Tower(99, room=2)
    found, message = go_together(tower, 64, "abcd", "efgh")
    assert found == ["AB", "CD", "EF", "GH"]
    assert message[-1][0] == 2


@pytest.mark.parametrize(("batch", "block"), [(1, 256), (8, 256), (6, 6), (32, 256), (1, 1)])
def test_sizes_get_tighter_until_nothing_is_left(batch: int, block: int) -> None:
    sizes = [(batch, block)]
    while sizes[-1][1]:
        sizes.append(next_sizes(*sizes[-1]))
    assert sizes[-1] == (1, 0) and (1, 1) in sizes
    assert sizes == sorted(set(sizes), reverse=True)


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    def broken(items: Sequence[str]) -> str:
        raise ValueError("shapes differ")

    def refused(items: Sequence[str]) -> str:
        raise UsageError("no such thing as CUDA out of memory")

    for compute, kind in ((broken, ValueError), (refused, UsageError)):
        with pytest.raises(kind):
            catch_oom(partial(compute, "ab"))


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
        made = OomRetry(report, list, no_faults()).run_batch("abcd", str, compute)
        assert [each for _, each in made] == list("abcd")


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
    assert requested_bytes(words) == size


class Faults:
    """What failed, by a stage whose first batch has so many items."""

    def __init__(self, first: int) -> None:
        self.failed: list[Any] = []
        self.items = ItemFaults("encode", lambda item, fault: self.failed.append(item), first)


def go_with_faults(
    bad: str, *batches: str, first: int | None = None
) -> tuple[list[str], list[str]]:
    """What came out of batches with such as raise, and what failed."""
    faults = Faults(len(batches[0]) if first is None else first)

    def compute(some: Any) -> str:
        if found := set(some) & set(bad):
            raise (TypeError if found & {"z"} else ValueError)("no such shape")
        return "".join(some)

    with events() as (report, _):
        oom_retry = OomRetry(report, list, faults.items)
        made = [m for b in batches for _, m in oom_retry.run_batch(b, str, compute)]
        faults.items.close()
    return made, faults.failed


@pytest.mark.parametrize(
    ("bad", "batches", "made", "failed"),
    [
        ("b", ["abc", "de"], ["a", "c", "de"], ["b"]),  # the items of a batch are tried alone
        ("a", ["a"], [], ["a"]),
        ("ab", ["ab", "cd"], ["cd"], ["a", "b"]),  # others go_with_faults through
        ("az", ["az"], [], ["a", "z"]),  # by different errors
    ],
)
def test_items_that_raise(bad: str, batches: list[str], made: list[str], failed: list[str]) -> None:
    assert go_with_faults(bad, *batches) == (made, failed)


def test_a_stage_on_which_all_raise_the_same_has_failed() -> None:
    with pytest.raises(StageDied, match="encode stage failed: each of 3 items") as end:
        go_with_faults("abc", "ab", "c")
    assert "ValueError: no such shape" in end.value.message
    # A stage that worked before is not at fault.
    assert go_with_faults("ab", "ab", first=0) == ([], ["a", "b"])


def test_a_stage_gives_up_after_so_many_items() -> None:
    faults = Faults(2)
    with pytest.raises(StageDied, match="each of 64 items"):
        for at in range(100):
            faults.items.add(at, ItemFault("ValueError", "no"))
    assert faults.failed == []


@pytest.mark.parametrize(
    "error",
    [
        *(UsageError("no"), OSError(5, "Input/output error"), ImportError("x"), MemoryError()),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: device-side assert triggered"),
        KeyboardInterrupt(),
    ],
)
def test_an_error_of_the_machine_is_no_item_s(error: BaseException) -> None:
    assert item_fault(error) is None


@pytest.mark.parametrize("error", [AttributeError("x"), ZeroDivisionError(), StopIteration()])
def test_what_a_processor_raises_refuses_that_chunk_alone(error: Exception, tmp_path: Path) -> None:
    meta = {"times": [0.0], "height": 1, "width": 1, "start": 0.0, "end": 0.0}
    records = RecordSet(open_store(str(tmp_path)), "frames", "aa" * 32)
    records.publish([Record(key="one", meta=meta, payload=bytes(3))])

    def prepare(clip: Any) -> Any:
        raise error

    found = read_chunk(records, EncodeItem("", "one", "image"), prepare)
    assert isinstance(found, Refusal) and found.kind == "refused"


class Breaking:
    """A processor of logits that raises at the third token of a row."""

    def __init__(self) -> None:
        self.tokens = 0

    def __call__(self, ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        self.tokens += 1
        if self.tokens == 3:
            raise ValueError("no such token")
        return logits


@pytest.mark.slow
def test_a_row_that_raises_at_a_step_of_its_slots_fails_alone() -> None:
    from dataclasses import replace

    from transformers import LogitsProcessorList

    model, items = rows_of_variant("llava")
    faults = Faults(0)

    def read(requests: DecodeRequest) -> PrefilledSequence:
        at = int(requests.item.key)
        row = prefill_row(model, *items[at], max_new_tokens=6)
        return replace(row, processors=LogitsProcessorList([Breaking()])) if at == 1 else row

    def text(*which: int) -> dict[str, list[int]]:
        row: Any = None
        requests = [DecodeRequest(DecodeItem(str(at), "", ""), row) for at in which]
        with events() as (report, _), ThreadPoolExecutor(1) as beside:
            loop = InflightScheduler(read, OomRetry(report, list, faults.items), PLAIN, slots=2)
            flights = [*loop.run(RequestPrefetcher([requests], beside))]
        return {each.request.item.key: each.output_ids for each in flights if each is not None}

    assert text(0, 1, 2, 3) == text(0, 2, 3)
    assert [requests.item.key for requests in faults.failed] == ["1"]
