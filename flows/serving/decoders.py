"""Decodes uploaded files in separate processes, one file at a time per process.

Uploads are untrusted, so each decoding process has memory and time limits. A process that ends is
restarted. Its file is tried once more and then refused. A process receives its next files while it
decodes one, so that it does not wait for the server in between.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from artifacts.errors import PenstockError
from artifacts.schema import MediaIndex
from flows.machine.launch import StageCall
from flows.serving.live_stage import LauncherMaker, WorkerProcess
from flows.serving.metrics import Metrics
from flows.serving.refusals import HttpRefusal, bad_request, unavailable
from flows.serving.scratch import TempStore
from stages.frames.job import FramesItem
from stages.frames.live import NO_MEMORY, TOO_LARGE
from stages.process.events import Event, Failed, MediumIndexed

log = logging.getLogger(__name__)

NAME = "decoders"
TRIES = 2
AHEAD = 3
"""Pictures that a process has at once. On a busy machine each waited 10 ms for the server between
two of them, which was most of the time. A video goes alone: nobody is to wait behind it."""
STATUS = {TOO_LARGE: 413, NO_MEMORY: 413, "not-media": 415, "playlist": 415}
"""Kind of a file's failure → status of the answer; else 422."""


@dataclass(eq=False, kw_only=True, slots=True)
class SentFile:
    """One file to be decoded."""

    medium: FramesItem
    answer: "asyncio.Future[MediaIndex]"
    deaths: int = 0
    """Processes that ended while they were at it."""

    @property
    def digest(self) -> str:
        return self.medium.digest

    @property
    def is_picture(self) -> bool:
        return self.medium.kind == "image"


class DecodingProcess:
    """One process that decodes its files in order."""

    def __init__(
        self,
        start: Callable[["DecodingProcess"], WorkerProcess],
        seconds: float,
        again: Callable[[list[SentFile]], None],
    ) -> None:
        """Begin none yet. A file may take `seconds`; `again` is given those that a process had when
        it ended, the one that it was at first, and is called when it can be given more."""
        self._start = start
        self._seconds = seconds
        self._again = again
        self._live: WorkerProcess | None = None
        self._files: deque[SentFile] = deque()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def pid(self) -> int:
        return self._live.pid if self._live else 0

    @property
    def load(self) -> int:
        """Return how many files it has."""
        return len(self._files)

    def takes(self, file: SentFile) -> bool:
        """Return whether it can be given a file."""
        pictures = file.is_picture and all(other.is_picture for other in self._files)
        return not self._files or (pictures and len(self._files) < AHEAD)

    def give(self, file: SentFile) -> None:
        """Have a file decoded after those that it has."""
        self.begin()
        assert self._live is not None
        self._files.append(file)
        self._live.send(file.medium)
        if len(self._files) == 1:
            self._watch()

    def begin(self) -> None:
        """Start the process before it is wanted."""
        self._live = self._live or self._start(self)

    def stop(self) -> None:
        """Let the process end."""
        if self._live is not None:
            self._live.stop()

    def hear(self, event: Event) -> None:
        """Hear an event of the process."""
        if not isinstance(event, MediumIndexed | Failed) or not self._files:
            return
        if event.media != self._files[0].digest:  # of a process that was killed
            return
        answer = self._files.popleft().answer
        self._watch()
        if not answer.done():
            if isinstance(event, MediumIndexed):
                answer.set_result(event.index)
            else:
                status = STATUS.get(event.kind, 422)
                answer.set_exception(HttpRefusal(status, event.message, event.hint))
        self._again([])

    def ended(self, live: WorkerProcess, error: PenstockError | None) -> None:
        """Hear that the process has ended."""
        if live is not self._live:
            return
        self._live = None
        if error is not None:
            log.warning("a decoder ended: %s", error.message)
        if self._files:
            self._files[0].deaths += 1
        self._hand_back()

    def _watch(self) -> None:
        """Begin to count the time of the file that it is at."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if self._files:
            self._timer = asyncio.get_running_loop().call_later(self._seconds, self._give_up)

    def _give_up(self) -> None:
        assert self._live is not None
        self._live.kill()
        self._live = None
        answer = self._files.popleft().answer
        if not answer.done():
            answer.set_exception(
                bad_request(
                    f"the file takes longer than {self._seconds:.0f} s to decode",
                    "Send a smaller one, or a piece of it",
                )
            )
        self._hand_back()

    def _hand_back(self) -> None:
        files = list(self._files)
        self._files.clear()
        self._watch()
        self._again(files)


class Decoders:
    """The pool of decoding processes of one pipeline."""

    def __init__(
        self,
        count: int,
        seconds: float,
        make_launcher: LauncherMaker,
        call_over: Callable[[str], StageCall],
        scratch: TempStore,
        metrics: Metrics,
    ) -> None:
        """Make `count` of them; a file may take `seconds`."""

        def start(decoder: DecodingProcess) -> WorkerProcess:
            pipe = scratch.path("-decoder")
            return WorkerProcess(make_launcher, call_over, pipe, decoder.hear, decoder.ended)

        self._metrics = metrics.of_half(NAME)
        self._waiting: deque[SentFile] = deque()
        self._every = [DecodingProcess(start, seconds, self._go_on) for _ in range(count)]

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

    async def cut(self, medium: FramesItem) -> MediaIndex:
        """Return what is in a file, its frames in the store. Raises Refused."""
        file = SentFile(medium=medium, answer=asyncio.get_running_loop().create_future())
        self._waiting.append(file)
        self._go_on([])
        return await file.answer

    def withdraw(self, medium: FramesItem) -> bool:
        """Take back a file that nobody wants any more. Return whether it was not begun."""
        for file in self._waiting:
            if file.medium is medium:
                self._waiting.remove(file)
                file.answer.cancel()
                return True
        return False

    def _go_on(self, left: list[SentFile]) -> None:
        """Give files to who can take them; those that were `left` by a process first."""
        if left:
            self._metrics.restarted("died")
        for file in reversed(left):
            if file.deaths < TRIES:
                self._waiting.appendleft(file)
            elif not file.answer.done():
                file.answer.set_exception(self._blame())
        while self._waiting:
            least = min(self._every, key=lambda decoder: decoder.load)
            if not least.takes(self._waiting[0]):
                return
            least.give(self._waiting.popleft())

    def _blame(self) -> HttpRefusal:
        if not self.pids:
            return unavailable(
                "no process that decodes can be started", "The server's log says why"
            )
        return bad_request(
            "the file ended two processes that decoded it", "Convert it, or send another one"
        )
