"""Decodes what was sent in processes of their own, one file each at a time. It knows nothing of
what the frames are for.

Who sends a file may mean harm, so a process that decodes may take so much memory and so long. One
that ends is begun anew; the file that it had is tried once more, and then refused.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from artifacts.errors import PenstockError
from artifacts.schema import MediaIndex
from flows.job.launch import StageCall
from flows.serving.live_stage import LauncherMaker, LiveStage
from flows.serving.metrics import Metrics
from flows.serving.refusals import Refused, bad, unavailable
from flows.serving.scratch import Scratch
from stages.frames.live import NO_MEMORY, TOO_LARGE
from stages.process.events import Event, Failed, MediumRead

log = logging.getLogger(__name__)

NAME = "decoders"
TRIES = 2
STATUS = {TOO_LARGE: 413, NO_MEMORY: 413, "not-media": 415, "playlist": 415}
"""Kind of a file's failure → status of the answer; else 422."""


class Died(Exception):
    """A decoder ended with a file in hand."""


class DecodingProcess:
    """One process that decodes."""

    def __init__(self, start: Callable[["DecodingProcess"], LiveStage]) -> None:
        self._start = start
        self._live: LiveStage | None = None
        self._answer: asyncio.Future[MediaIndex] | None = None
        self._digest = ""

    @property
    def pid(self) -> int:
        return self._live.pid if self._live else 0

    async def cut(self, medium: dict[str, Any], seconds: float) -> MediaIndex:
        """Return what is in a file, of which the frames are in the store then. Raises Refused, or
        Died."""
        live = self._live = self._live or self._start(self)
        self._answer = asyncio.get_running_loop().create_future()
        self._digest = medium["digest"]
        live.tell(medium)
        try:
            return await asyncio.wait_for(self._answer, seconds)
        except TimeoutError as error:
            live.kill()
            self._live = None
            raise bad(
                f"the file takes longer than {seconds:.0f} s to decode",
                "Send a smaller one, or a piece of it",
            ) from error
        finally:
            self._answer = None

    def begin(self) -> None:
        """Start the process before it is wanted."""
        self._live = self._live or self._start(self)

    def stop(self) -> None:
        """Let the process end."""
        if self._live is not None:
            self._live.stop()

    def hear(self, event: Event) -> None:
        """Hear an event of the process."""
        answer = self._answer
        if answer is None or answer.done():
            return
        if isinstance(event, MediumRead) and event.media == self._digest:
            answer.set_result(MediaIndex.from_json(dict(event.index)))
        elif isinstance(event, Failed) and event.media == self._digest:
            status = STATUS.get(event.kind, 422)
            answer.set_exception(Refused(status, event.message, event.hint))

    def ended(self, live: LiveStage, error: PenstockError | None) -> None:
        """Hear that the process has ended."""
        if live is not self._live:
            return
        self._live = None
        if error is not None:
            log.warning("a decoder ended: %s", error.message)
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(Died())


class Decoders:
    """So many processes that decode for one pipeline."""

    def __init__(
        self,
        count: int,
        seconds: float,
        make_launcher: LauncherMaker,
        call_over: Callable[[str], StageCall],
        scratch: Scratch,
        metrics: Metrics,
    ) -> None:
        """Make `count` of them; a file may take `seconds`."""

        def start(decoder: DecodingProcess) -> LiveStage:
            pipe = scratch.path("-decoder")
            return LiveStage(make_launcher, call_over, pipe, decoder.hear, decoder.ended)

        self._metrics = metrics.of_half(NAME)
        self._seconds = seconds
        self._every = [DecodingProcess(start) for _ in range(count)]
        self._free: asyncio.LifoQueue[DecodingProcess] = asyncio.LifoQueue()
        for decoder in self._every:
            self._free.put_nowait(decoder)

    @property
    def pids(self) -> list[int]:
        return [decoder.pid for decoder in self._every if decoder.pid]

    def begin(self) -> None:
        """Start them."""
        for decoder in self._every:
            decoder.begin()

    def stop(self) -> None:
        """Let them end."""
        for decoder in self._every:
            decoder.stop()

    async def cut(self, medium: dict[str, Any]) -> MediaIndex:
        """Return what is in a file, its frames in the store. Who waits may be cancelled; a decoder
        that has begun goes on. Raises Refused."""
        for _ in range(TRIES):
            decoder = await self._free.get()
            try:
                return await decoder.cut(medium, self._seconds)
            except Died:
                self._metrics.restarted("died")
            finally:
                self._free.put_nowait(decoder)
        if not self.pids and not any(decoder.pid for decoder in self._every):
            raise unavailable("no process that decodes can be started", "The server's log says why")
        raise bad("the file ended two processes that decoded it", "Convert it, or send another one")
