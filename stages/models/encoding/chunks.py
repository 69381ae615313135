"""Reads a chunk's frames from the store as an encoder takes them, or gives the reason why it
cannot."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from artifacts.pack_object import DamagedRecord
from artifacts.packs import RecordSet
from stages.memory.item_faults import item_fault
from stages.models.encoding.job import EncodeItem
from stages.models.processors.clip import Clip
from stages.models.processors.side_inputs import Prepared


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """The reason why one chunk cannot be encoded, while the others can."""

    message: str
    hint: str = "Try another model or other sampling (--fps, --frames); the other files are done"
    kind: str = "refused"

    def meta(self) -> dict[str, str]:
        return {"kind": self.kind, "message": self.message, "hint": self.hint}


def read_chunk(
    record_set: RecordSet, item: EncodeItem, prepare: Callable[[Clip], Prepared]
) -> Prepared | Refusal:
    """Read one chunk as encoder input, or return why the processor refuses its frames."""
    try:
        return prepare(read_clip(record_set, item))
    except Exception as error:
        fault = item_fault(error)
        if fault is None:
            raise
        text = fault.message or fault.type
        return Refusal(message=f"the model's processor refuses these frames: {text}")


def read_clip(record_set: RecordSet, item: EncodeItem) -> Clip:
    """Read one chunk's frames, with times relative to its start. Raises DamagedRecord if the frames
    are missing."""
    try:
        record = record_set.read(item.frames)
    except KeyError as error:
        raise DamagedRecord(
            f"the frames {item.frames[:12]}… are no longer in the store",
            hint="Run the same command again: it reads them from the video again",
        ) from error
    meta = record.meta
    shape = (len(meta["times"]), meta["height"], meta["width"], 3)
    return Clip(
        # A copy, because processors make tensors of the frames, and torch requires writable memory.
        # While numpy copies, other threads run; while `bytearray` does, they wait.
        frames=np.frombuffer(record.payload, np.uint8).reshape(shape).copy(),
        # A frame that is visible at the start of a chunk may have a time before it.
        times=tuple(max(0.0, float(time) - float(meta["start"])) for time in meta["times"]),
        seconds=float(meta["end"]) - float(meta["start"]),
        kind="image" if item.kind == "image" else "video",
    )
