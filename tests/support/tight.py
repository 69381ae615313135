"""Stages that answer at once and have room on some rungs only: what real ones do when memory runs
out, without a model."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from artifacts.errors import Killed, OutOfMemory
from flows.core.machine.launch import StageCall
from stages.memory.oom_retry import smaller
from stages.process.events import Answered, BatchShrunk, StageOutcome, TooLarge
from stages.process.job import job_fields
from stages.process.stage_process import Listener
from tests.support.stand_ins import PROFILE, Answer, Stages, flat

QUANTIZABLE = replace(
    PROFILE,
    parts={
        "vision": replace(
            PROFILE.vision, linear_modules=2, linear_parameters=1, linear_rows=1, layers=2
        ),
        "language": replace(PROFILE.language, linear_modules=2, linear_parameters=1, linear_rows=1),
    },
)
WORDS = "CUDA out of memory. Tried to allocate 2.00 GiB"
Room = Callable[[Mapping[str, Any]], int]
"""Given what a stage is told, how many items it has room for at once; -1: not even for the
weights."""


class Tight(Stages):
    """Each stage named in `rooms` runs out of memory when a batch is larger than its room.

    `dies`: `raise`, with a word; `kill`, as a process whose death is told to be one of memory;
    `murder`, as one whose death is not; `shrink`, not at all: it goes on with smaller batches and
    tells so.
    """

    def __init__(self, dies: str, rooms: Mapping[str, Room], *, giant: str = "") -> None:
        super().__init__()
        self.profile = QUANTIZABLE
        self.dies = dies
        self.rooms = rooms
        self.giant = giant
        """Stage that has one item which fits on no rung: its first."""
        self.deaths = 0
        self._listen: Listener = lambda stage, event: None
        self._giant = ""

    def launcher(self, listen: Listener) -> "Tight":
        self._listen = listen
        return self

    def start(self, call: StageCall) -> Answer:
        if call.name == "frames":
            job: Any = call.job  # each wave has a process
            call = replace(call, job=replace(job, requests=""))
        if call.name not in self.rooms or job_fields(call.job).get("requests"):
            return super().start(call)
        self.calls.append(call)
        return Answer(StageOutcome(name=call.name), lambda outcome: self._work(call, outcome))

    def _work(self, call: StageCall, outcome: StageOutcome) -> StageOutcome:
        room = self.rooms[call.name](flat(call))
        outcome.notes["ready"] = room >= 0
        if call.name == "frames":
            if job_fields(call.job)["workers"] > room:
                self._die(call, outcome)
            return self._answer(call, outcome)
        message = job_fields(call.job)["batches"]
        if call.name == self.giant:
            message = self._without_giant(call, outcome)
        for batch in filter(None, message):
            pieces = [batch]
            if len(batch) > room:
                if self.dies != "shrink" or room < 1:
                    self._die(call, outcome)
                pieces = self._halves(call.name, batch, room)
            for piece in pieces:
                before = outcome.items
                part = replace(call, job=replace(call.job, batches=[piece]))
                self._answer(part, outcome)
                for _ in range(outcome.items - before):
                    self._listen(call.name, Answered(tokens=1))
        return outcome

    def _without_giant(self, call: StageCall, outcome: StageOutcome) -> list[list[Any]]:
        made_of = {"encode": "frames", "decode": "features"}[call.name]
        batches: list[list[Any]] = job_fields(call.job)["batches"]
        self._giant = self._giant or getattr(batches[0][0], made_of)
        for member in (member for batch in batches for member in batch):
            if getattr(member, made_of) == self._giant:
                large = TooLarge(key=member.key, wanted_bytes=2 << 30, error=WORDS)
                outcome.too_large.append(large)
        return [[m for m in batch if getattr(m, made_of) != self._giant] for batch in batches]

    def _halves(self, stage: str, batch: list[Any], room: int) -> list[list[Any]]:
        size = len(batch)
        while size > room:
            failed, size = size, smaller(size)
            self._listen(stage, BatchShrunk(batch=size, failed=failed, error=WORDS))
        return [batch[at : at + size] for at in range(0, len(batch), size)]

    def _die(self, call: StageCall, outcome: StageOutcome) -> None:
        self.deaths += 1
        if self.dies == "murder":
            raise Killed(f"the {call.name} stage was ended by signal 9", items=outcome.items)
        how = "the kernel killed it" if self.dies == "kill" else WORDS
        raise OutOfMemory(f"the {call.name} stage ran out of memory ({how})", items=outcome.items)
