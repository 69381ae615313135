"""Retries after out of memory or an error on one item: runs batches in parts that fit.

How it works:

1. `catch_oom` runs a part of a batch. On out of memory it frees unused memory and returns the
   allocator's message. It raises every other error.
2. A part that ran out of memory is cut to the next power of two below its size. The new size is
   reported, and the cut parts are retried.
3. The new size stays for the rest of the process. Sizes divide each other, so each part has the
   same items as if this size had been chosen from the start.
4. An item that does not fit alone is reported as too large and left out.
5. When three items in a row fail alone before any item fitted, `spare` is tried. If it fits, the
   items are at fault. If not, CannotFit ends the stage.
6. A model's code may raise anything on an unusual item, such as an image of one token. If it raises
   on a part, the items of the part are tried alone. An item that raises alone fails by name, and
   the others continue. If every item of the first batch raises the same type of error and nothing
   else succeeds, the stage is at fault. NotFinite counts as such an error.
7. `run_block` does the same for a block of several batches. After out of memory, blocks shrink
   before batches do (`next_sizes`), because the batch size affects the output bytes.

The module also makes the C library return large freed blocks to the system. A memory limit counts
what a process has mapped. By default glibc keeps freed blocks for reuse, and keeps more of them
after larger ones. After a half was loaded tensor by tensor and quantized, the process held four
times the memory of the half.

The module imports no library.
"""

import contextlib
import ctypes
import gc
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

from artifacts.errors import CannotFit, NotFinite, PenstockError, StageDied
from stages.process.events import EventReporter, TooLarge
from stages.process.exit_diagnosis import device_advice, first_line, oom_message
from stages.process.memory_limit import at_the_limit, room

MACHINE_ERRORS = (PenstockError, OSError, ImportError, MemoryError)
"""Errors that no item causes: intended errors of this program, file errors and import errors."""
DEVICE_ERROR_SIGNS = ("CUDA error", "CUDA driver", "CUBLAS_STATUS", "CUDNN_STATUS", "HIP error")
"""Text in the error of a device that no longer computes anything, whatever the next item is."""
MAX_FAILED_ITEMS = 64
"""Items that may fail in a row before any succeeds, until the stage fails."""
MAX_NOT_FINITE = 4
"""Items in a row whose results may be NaN or infinite before any succeeds, until the stage fails.
Few, because the weights or the precision cause that, and hardly ever an item."""
MAX_MESSAGE_CHARACTERS = 160
"""Characters of a library's message that are reported."""


RETRY = "Try another model, or retry with --retry-failed; the other items are done"


class ItemFault(NamedTuple):
    """The error that a model raised on one item."""

    type: str
    message: str
    kind: str = ""
    """Kind of NotFinite; empty for any other error."""
    hint: str = ""
    """What to do about it."""

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type

    def meta(self, stage: str, hint: str = RETRY) -> dict[str, str]:
        if self.kind:
            return {"kind": self.kind, "message": self.message, "hint": self.hint}
        message = f"the model's code fails in the {stage} stage on this item ({self})"
        return {"kind": "model", "message": message, "hint": hint}


def item_fault(error: BaseException) -> ItemFault | None:
    """Return the item's fault; None if memory, the machine or this program is at fault."""
    if isinstance(error, NotFinite):
        return ItemFault(type(error).__name__, error.message, error.kind, error.hint)
    if not isinstance(error, Exception) or isinstance(error, MACHINE_ERRORS):
        return None
    message = " ".join(first_line(error).split())
    device = any(sign in message for sign in DEVICE_ERROR_SIGNS) or bool(device_advice(message))
    if device or oom_message(error) is not None or at_the_limit():
        return None
    return ItemFault(type(error).__name__, message[:MAX_MESSAGE_CHARACTERS])


class ItemFaults:
    """The items on which the model raised, held back until another item succeeds."""

    def __init__(
        self,
        stage: str,
        fail: Callable[[Any, ItemFault], None],
        first: int = 0,
        hold: Callable[[Any], object] = lambda item: None,
    ) -> None:
        """`fail` is called with each failed item, and `hold` with one that is held back. `first` is
        the size of the first batch; 0 if the stage is known to work."""
        self._stage = stage
        self._fail = fail
        self._hold = hold
        self._first = first
        self._held: list[tuple[Any, ItemFault]] = []
        self._confirmed = first == 0

    def add(self, item: Any, fault: ItemFault) -> None:
        """Record an item that raised alone. Raises StageDied if the stage is at fault."""
        if self._confirmed or (self._first == 1 and not fault.kind):
            self._fail(item, fault)
            return
        self._held.append((item, fault))
        self._hold(item)
        most = MAX_NOT_FINITE if fault.kind else MAX_FAILED_ITEMS
        if len(self._held) >= max(most, self._first):
            self.close()

    def note_success(self) -> None:
        """Record that an item succeeded, so the items that raised are at fault."""
        self._confirmed = True
        for item, fault in self._held:
            self._fail(item, fault)
        self._held.clear()

    def close(self) -> None:
        """Report held back items as failed. Raises StageDied if the stage is at fault."""
        types = {fault.type for _, fault in self._held}
        if len(types) == 1 and len(self._held) >= self._first:
            fault = self._held[0][1]
            if fault.kind:
                raise StageDied(fault.message, hint=f"{fault.hint}; no file is recorded as failed")
            raise StageDied(
                f"the {self._stage} stage failed: each of {len(self._held)} items, tried alone, "
                f"raises {fault}",
                hint="No file is recorded as failed; try another model or other options",
            )
        self.note_success()


Item = TypeVar("Item")
Made = TypeVar("Made")
Tried = tuple[list[Made], str | None, ItemFault | None]

MAX_LONE_FAILURES = 3
"""Items that may fail alone in a row before any item fitted. Then `spare` is tried, because the
largest items often come first."""
ALLOCATION = re.compile(r"allocate (\d+(?:\.\d+)?) ?(bytes|KiB|MiB|GiB|TiB)", re.IGNORECASE)
MIN_BLOCK_ITEMS = 16
"""Smallest block as long as batches can be made smaller instead."""
MAX_IMAGES = 512
"""Most images per block. Computing so many takes longer than reading an encoder's layer from any
disk, and no more are lost if the process is killed."""
UNITS = {"bytes": 0, "kib": 10, "mib": 20, "gib": 30, "tib": 40}


def split_batch(batch: Sequence[Item], size: int) -> list[Sequence[Item]]:
    return [batch[at : at + size] for at in range(0, len(batch), size)]


def batches_within(batches: Sequence[Sequence[Item]], max_items: int, first: int = 0) -> int:
    """Return how many batches from `first` on have at most `max_items` items; at least one."""
    count, at = len(batches[first]), first + 1
    while at < len(batches) and (count := count + len(batches[at])) <= max_items:
        at += 1
    return at - first


def items_per_block(max_items: int, images: int) -> int:
    """Return the number of items per block, for items of `images` images each."""
    return min(max_items, MAX_IMAGES // max(1, images))


def blocks(
    batches: Sequence[Sequence[Item]],
    max_items: int,
    images: Callable[[Item], int] = lambda item: 1,
) -> Iterator[Sequence[Sequence[Item]]]:
    """Yield blocks of batches: at most `max_items` items, or one batch. `images` returns the number
    of images of an item."""
    first = 0
    while first < len(batches):
        count = batches_within(
            batches, items_per_block(max_items, images(batches[first][0])), first
        )
        yield batches[first : first + count]
        first += count


def smaller(size: int) -> int:
    """Return the largest power of two below `size`, so that sizes divide each other; 0 for 1."""
    return 1 << (size - 1).bit_length() - 1 if size > 1 else 0


def next_sizes(batch: int, block: int) -> tuple[int, int]:
    """Return the next smaller sizes of a batch and of a block of batches, in items. First blocks
    shrink, then batches, then small blocks; 0 means below one item."""
    if block > (smallest := max(batch, MIN_BLOCK_ITEMS)):
        return batch, max(smallest, block // 4)
    if batch > 1:
        return smaller(batch), block
    return 1, block // 4


class OomRetry:
    """The batch and block sizes that one process falls back to after out of memory, and keeps."""

    def __init__(
        self, report: EventReporter, spare: Callable[[], object], faults: ItemFaults
    ) -> None:
        """`spare` computes another item: if it fits, the items that do not fit are at fault. Items
        on which the model raises are added to `faults`."""
        self._report = report
        self.faults = faults
        self._spare = spare
        self._size = 0
        """Maximum piece size; 0: no batch has run out of memory yet."""
        self._block = 0
        """Maximum items per block; 0: no block has run out of memory yet."""
        self._any_fitted = False
        """Whether anything has fitted so far."""
        self._failed = 0
        """Items in a row that did not fit alone."""

    def run_block(
        self,
        batches: Sequence[Sequence[Item]],
        block: int,
        key: Callable[[Item], str],
        compute: Callable[[Sequence[Sequence[Item]]], list[Made]],
    ) -> Iterator[tuple[Sequence[Item], Made]]:
        """Do as `run_batch` for blocks of batches, with at most `block` items at a time. `compute`
        returns one result per batch."""
        waiting = [batches]
        while waiting:
            cut = [
                p for batch in waiting.pop() for p in split_batch(batch, self._size or len(batch))
            ]
            count = batches_within(cut, self._block or block)
            some = cut[:count]
            if cut[count:]:
                waiting.append(cut[count:])
            is_one = len(some) == 1
            results, message, fault = (
                ([], None, None) if is_one else try_items(partial(compute, some))
            )
            if is_one or fault is not None:
                for batch in some:
                    yield from self.run_batch(batch, key, lambda piece: compute([piece])[0])
                continue
            if message is None:
                self.note_success()
                yield from zip(some, results.pop(), strict=True)
                continue
            largest, failed = max(map(len, some)), sum(map(len, some))
            self._size, self._block = next_sizes(largest, failed)
            self._report.batch_shrunk(
                self._size, failed=failed, error=message[:200], block=self._block
            )
            waiting.append(some)

    def run_batch(
        self,
        batch: Sequence[Item],
        key: Callable[[Item], str],
        compute: Callable[[Sequence[Item]], Made],
    ) -> Iterator[tuple[Sequence[Item], Made]]:
        """Yield each piece with the result of `compute`, in order. An item that fails alone, by
        memory or by the model, is left out. Raises CannotFit if nothing fits."""
        waiting = [batch]
        while waiting:
            piece = waiting.pop()
            if 0 < self._size < len(piece):
                waiting += split_batch(piece, self._size)[::-1]
                continue
            results, message, fault = try_items(partial(compute, piece))
            if fault is not None:
                if len(piece) > 1:
                    waiting += split_batch(piece, 1)[::-1]
                else:
                    self.faults.add(piece[0], fault)
                continue
            if message is None:
                self.note_success()
                yield piece, results.pop()
                continue
            if len(piece) > 1:
                self._size = smaller(len(piece))
                self._report.batch_shrunk(self._size, failed=len(piece), error=message[:200])
                waiting.append(piece)
                continue
            self._failed += 1
            if self._failed == MAX_LONE_FAILURES and not self._any_fitted:
                self._any_fitted = catch_oom(self._spare)[1] is None
            if self._failed == MAX_LONE_FAILURES and not self._any_fitted:
                raise CannotFit(
                    f"not even single items fit into memory ({message[:160]})",
                    hint="Finished work is kept; raise --memory, or use --precision auto",
                )
            needed = requested_bytes(message)
            self._report.send(TooLarge(key=key(piece[0]), wanted_bytes=needed, error=message[:200]))

    def shrink(self, failed: int, message: str) -> int:
        """Keep, report and return the next size below `failed` rows, for engines with slots."""
        self._size = smaller(failed)
        self._report.batch_shrunk(self._size, failed=failed, error=message[:200])
        return self._size

    def note_success(self) -> None:
        """Record a success: an item that fails from now on is itself too large."""
        self._any_fitted, self._failed = True, 0
        self.faults.note_success()


def try_items(compute: Callable[[], Made]) -> Tried[Made]:
    """Do as `catch_oom`, and also return an error of the model's code instead of raising it."""
    try:
        return *catch_oom(compute), None
    except Exception as error:
        fault = item_fault(error)
        if fault is None:
            raise
    return [], None, fault


def catch_oom(compute: Callable[[], Made]) -> tuple[list[Made], str | None]:
    """Return the result of `compute` in a list, and None. On out of memory return an empty list and
    the allocator's message."""
    message: str | None = None
    try:
        return [compute()], None
    except Exception as error:
        message = None if isinstance(error, PenstockError) else oom_message(error)
        if message is None:
            raise
    # Only after the except block is the traceback gone, and with it what its frames held.
    release_memory()
    return [], message


def requested_bytes(message: str) -> int:
    """Return the size of the failed allocation from an allocator's message; 0 if unknown."""
    match = ALLOCATION.search(message)
    return int(float(match[1]) * (1 << UNITS[match[2].lower()])) if match else 0


def release_memory() -> None:
    """Release unused memory to the device and to the system."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    with contextlib.suppress(AttributeError, OSError):  # another C library has no malloc_trim
        ctypes.CDLL(None).malloc_trim(0)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
SMALL_BYTES = 256 << 10
"""Blocks of this size or more are mapped separately and unmapped when they are freed."""
WORKING_BYTES = 1 << 20
"""The same size while batches are computed. Mapping each block separately costs 7 % of the
computing time at a width of 1024, and less at larger ones. With glibc's limit of 32 MiB, layers
with different block sizes hold twice the live memory, by an amount that cannot be predicted."""
KEPT_BYTES = 16 << 20
"""Bytes of smaller freed blocks that are kept for reuse."""
TIGHT_BYTES = 1 << 30
"""If less room than this is left under the limit, even smaller blocks are still returned after the
`trim_freed_blocks` block. glibc kept 130 MiB of fragments of a batch that did not fit. The limit
counted them, so half and a quarter of that batch did not fit either."""
MAX_THRESHOLD_BYTES = 32 << 20
"""Largest threshold that glibc accepts."""


def keep_freed_blocks() -> None:
    """Keep freed blocks for reuse, in a process whose blocks have similar sizes. Mapping new pages
    for a few images took half as long as decoding them."""
    _set(M_MMAP_THRESHOLD, MAX_THRESHOLD_BYTES)
    _set(M_TRIM_THRESHOLD, 2 * MAX_THRESHOLD_BYTES)


@contextlib.contextmanager
def trim_freed_blocks() -> Iterator[None]:
    """Return memory freed in this block, and large blocks freed after it, to the system."""
    _set(M_MMAP_THRESHOLD, SMALL_BYTES)
    try:
        yield
    finally:
        release_memory()
        if room() > TIGHT_BYTES:
            # Explicit thresholds switch off glibc's automatic adjustment.
            _set(M_MMAP_THRESHOLD, WORKING_BYTES)
            _set(M_TRIM_THRESHOLD, KEPT_BYTES)


def _set(option: int, value: int) -> None:
    with contextlib.suppress(AttributeError, OSError):  # another C library has no mallopt
        ctypes.CDLL(None).mallopt(ctypes.c_int(option), ctypes.c_int(value))
