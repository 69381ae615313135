"""Whose fault an error is: the item's, the stage's, or the machine's."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from artifacts.errors import StageDied, UsageError
from artifacts.packs import Record, RecordSet
from artifacts.store import open_store
from stages.decode.engines.inflight.pool_shape import PLAIN
from stages.decode.engines.inflight.prefill import PrefilledSequence, prefill_row
from stages.decode.engines.inflight.request_prefetch import RequestPrefetcher
from stages.decode.engines.inflight.scheduler import InflightScheduler
from stages.decode.job import DecodeItem
from stages.decode.protocol import DecodeRequest
from stages.memory.item_faults import ItemFault, ItemFaults, item_fault
from stages.memory.oom_retry import OomRetry
from stages.models.encoding.chunks import Refusal, read_chunk
from stages.models.encoding.job import EncodeItem
from tests.support.tiny_families.in_slots import rows_of_variant
from tests.support.waves import events


class Faults:
    """What failed, by a stage whose first batch has so many items."""

    def __init__(self, first: int) -> None:
        self.failed: list[Any] = []
        self.items = ItemFaults("encode", lambda item, fault: self.failed.append(item), first)


def go(bad: str, *batches: str, first: int | None = None) -> tuple[list[str], list[str]]:
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
        ("ab", ["ab", "cd"], ["cd"], ["a", "b"]),  # others go through
        ("az", ["az"], [], ["a", "z"]),  # by different errors
    ],
)
def test_items_that_raise(bad: str, batches: list[str], made: list[str], failed: list[str]) -> None:
    assert go(bad, *batches) == (made, failed)


def test_a_stage_on_which_all_raise_the_same_has_failed() -> None:
    with pytest.raises(StageDied, match="encode stage failed: each of 3 items") as end:
        go("abc", "ab", "c")
    assert "ValueError: no such shape" in end.value.message
    assert go("ab", "ab", first=0) == ([], ["a", "b"]), "a stage that worked before is not at fault"


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

    def __len__(self) -> int:
        return 1

    def __call__(self, ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        self.tokens += 1
        if self.tokens == 3:
            raise ValueError("no such token")
        return logits


@pytest.mark.slow
def test_a_row_that_raises_at_a_step_of_its_slots_fails_alone() -> None:
    from dataclasses import replace

    model, items = rows_of_variant("llava")
    faults = Faults(0)

    def read(asked: DecodeRequest) -> PrefilledSequence:
        at = int(asked.item.key)
        row = prefill_row(model, *items[at], max_new_tokens=6)
        return replace(row, processors=Breaking()) if at == 1 else row

    def said(*which: int) -> dict[str, list[int]]:
        row: Any = None
        asked = [DecodeRequest(DecodeItem(str(at), "", ""), row) for at in which]
        with events() as (report, _), ThreadPoolExecutor(1) as beside:
            loop = InflightScheduler(read, OomRetry(report, list, faults.items), PLAIN, slots=2)
            flights = [
                each for each in loop.run(RequestPrefetcher([asked], beside)) if each is not None
            ]
        return {flight.request.item.key: flight.output_ids for flight in flights}

    assert said(0, 1, 2, 3) == said(0, 2, 3)
    assert [asked.item.key for asked in faults.failed] == ["1"]
