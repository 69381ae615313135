"""Separates an error of the model's code on one item from a fault of the whole stage.

A model's code may raise anything on an unusual item, such as an image of one token. Such an item
fails by name, and the others go on. If every item of the first batch raises the same type of error
and nothing else succeeds, the stage is at fault.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from artifacts.errors import PenstockError, StageDied
from stages.process.exit_diagnosis import device_advice, first_line, oom_message
from stages.process.memory_limit import at_the_limit

MACHINE_ERRORS = (PenstockError, OSError, ImportError, MemoryError)
"""Errors that no item causes: intended errors of this program, file errors and import errors."""
DEVICE_ERROR_SIGNS = ("CUDA error", "CUDA driver", "CUBLAS_STATUS", "CUDNN_STATUS", "HIP error")
"""Text in the error of a device that no longer computes anything, whatever the next item is."""
MAX_FAILED_ITEMS = 64
"""Items that may fail in a row before any succeeds, until the stage fails."""
MAX_MESSAGE_CHARACTERS = 160
"""Characters of a library's message that are reported."""


RETRY = "Try another model, or retry with --retry-failed; the other items are done"


class ItemFault(NamedTuple):
    """The error that a model raised on one item."""

    type: str
    message: str

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type

    def meta(self, stage: str, hint: str = RETRY) -> dict[str, str]:
        """Return the fields of the item's failure record."""
        message = f"the model's code fails in the {stage} stage on this item ({self})"
        return {"kind": "model", "message": message, "hint": hint}


def item_fault(error: BaseException) -> ItemFault | None:
    """Return the item's fault; None if memory, the machine or this program is at fault."""
    if not isinstance(error, Exception) or isinstance(error, MACHINE_ERRORS):
        return None
    message = " ".join(first_line(error).split())
    device = any(sign in message for sign in DEVICE_ERROR_SIGNS) or bool(device_advice(message))
    if device or oom_message(error) is not None or at_the_limit():
        return None
    return ItemFault(type(error).__name__, message[:MAX_MESSAGE_CHARACTERS])


class ItemFaults:
    """The items of one process on which the model raised. They are held back until another item
    succeeds."""

    def __init__(self, stage: str, fail: Callable[[Any, ItemFault], None], first: int = 0) -> None:
        """`fail` is called with each failed item. `first` is the size of the first batch; 0 if the
        stage is known to work."""
        self._stage = stage
        self._fail = fail
        self._first = first
        self._held: list[tuple[Any, ItemFault]] = []
        self._confirmed = first < 2

    def add(self, item: Any, fault: ItemFault) -> None:
        """Record an item that raised alone. Raises StageDied if the stage is at fault."""
        if self._confirmed:
            self._fail(item, fault)
            return
        self._held.append((item, fault))
        if len(self._held) >= max(MAX_FAILED_ITEMS, self._first):
            self.close()

    def note_success(self) -> None:
        """Record that an item succeeded, so the items that raised are at fault."""
        self._confirmed = True
        for item, fault in self._held:
            self._fail(item, fault)
        self._held.clear()

    def close(self) -> None:
        """Report the items that are held back as failed. Raises StageDied if the stage is at
        fault."""
        types = {fault.type for _, fault in self._held}
        if len(types) == 1 and len(self._held) >= self._first:
            raise StageDied(
                f"the {self._stage} stage failed: each of {len(self._held)} items, tried alone, "
                f"raises {self._held[0][1]}",
                hint="No file is recorded as failed; try another model or other options",
            )
        self.note_success()
