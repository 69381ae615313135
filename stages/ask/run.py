"""The ask stage: sends the frames of chunks to servers and stores their captions.

How it works:

1. A thread claims the chunks that lack a caption, reads their frames and encodes them once, for all
   prompts about them.
2. Each item is sent by a task of its own, which files the answer of its own request. The pace of
   each server bounds how many are sent at once.
3. A request to an overloaded or silent server is repeated later, or sent to another one. An item
   that stays unanswered fails in this run; the next run tries it again.
4. A request that is refused, or an answer that is no caption, is stored as a failure of its item.
5. A refused key, an unknown model, a redirect, a changed model, and servers that are all silent end
   the stage. What was answered until then is stored.
"""

import asyncio
import random
import re
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from PIL import Image

from artifacts.claims import claims_at
from artifacts.endpoints import endpoints_of, keys_from
from artifacts.errors import EnvironmentFault, PenstockError
from artifacts.packs import DamagedRecord, Record, record_sets_of
from artifacts.store import open_store
from stages.ask import UNANSWERED, AskItem, AskJob
from stages.ask.servers import (
    OVERLOADED,
    ModelServer,
    ModelServers,
    NoReply,
    Reply,
    refuse_all,
    refuse_page,
)
from stages.ask.wire import Answer, BadAnswer, answer_in, error_in, media_of, request_body
from stages.memory.oom_retry import ItemFault, ItemFaults
from stages.process.event_loop import loop_factory
from stages.process.events import EventReporter
from stages.process.job import parse_job

Chunk = list[AskItem]
"""The items about one chunk."""
TRIES, MAX_BUSY = 6, 60
"""Requests for an item without a caption, before it fails; the same of overloaded servers."""
BACKOFF = (0.5, 20.0)
"""First and longest wait in seconds before another try."""
FLUSH_SECONDS = 0.2
"""Time in which answers are collected to be stored together."""
AHEAD = 8
"""Items that are encoded before a server is free."""
PLACE_BYTES = 2 << 20
"""An item with more media takes several places of those at once."""
SURE = 8
"""Items that are refused or stay unanswered, and none answered, after which the stage ends."""
OUR_NAME = re.compile(r"[0-9a-f]{64}")
"""The name of a request: the key of its item."""
RETRY_HINT = "The same command sends it again; what was answered is kept"
STORED_HINT = "Change the prompt or the model, or try again with --retry-failed"


def warm(_: dict[str, Any]) -> None:
    """Import what the first request needs, before the stage's memory is measured."""
    loop_factory()
    Image.preinit()


def run(job_fields: dict[str, Any], report: EventReporter) -> None:
    """Publish a caption or a failure for each item that has neither."""
    job = parse_job(AskJob, job_fields)
    asking = Asking(job, report)
    by_chunk: dict[str, Chunk] = {}
    for item in asking.missing(job.items):
        by_chunk.setdefault(item.frames, []).append(item)
    report.total(sum(map(len, by_chunk.values())))
    if by_chunk:
        try:
            with asyncio.Runner(loop_factory=loop_factory()) as runner:
                runner.run(asking.all([*by_chunk.values()]))
        except BaseExceptionGroup as group:
            error: BaseException = group.subgroup(PenstockError) or group
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            raise error from None


class Asking:
    """One job: what is sent, and what is to be stored."""

    def __init__(self, job: AskJob, report: EventReporter) -> None:
        self._job = job
        self._report = report
        self._store = store = open_store(job.store)
        self._frames, self._captions, self._failures = record_sets_of(
            store,
            ("frames", job.frames_namespace),
            ("captions", job.namespace),
            ("failures", job.namespace),
        )
        self._keys = keys_from(job.keys_file)
        is_new = not len(self._captions)
        self._faults = ItemFaults("ask", self._refuse, min(SURE, len(job.items)) if is_new else 0)
        self._made: list[Record] = []
        self._failed: list[Record] = []
        self._answered = self._unanswered = 0

    def missing(self, items: Chunk) -> Chunk:
        """Return the items that have neither a caption nor a failure."""
        return [i for i in items if i.key not in self._captions and i.key not in self._failures]

    def _work(self, chunks: list[Chunk]) -> Iterator[tuple[Chunk, bytes]]:
        """Yield the missing items of each chunk that this process claims, and its media."""
        keys = lambda chunk: [item.key for item in self.missing(chunk)]  # noqa: E731
        for chunk in self._claims.claimed_batches(chunks, keys):
            first = chunk[0]
            if first.frames not in self._frames:
                raise DamagedRecord(
                    f"the frames {first.frames[:12]}… are no longer in the store",
                    hint="Run the same command again: it reads them from the video again",
                )
            record, video = self._frames.read(first.frames), self._job.video
            yield self.missing(chunk), media_of(record, first.kind, self._job.fit, video=video)

    async def all(self, chunks: list[Chunk]) -> None:
        """Send every item. Raises PenstockError, or a group of errors."""
        job, loop = self._job, asyncio.get_running_loop()
        ready: deque[asyncio.Future[Any]] = deque()
        endpoints = endpoints_of(job.endpoints, insecure=True)
        self._servers = ModelServers(
            endpoints, self._keys, job.at_once, job.seen, self._report.warning
        )
        most = job.at_once * len(endpoints) + AHEAD
        places, work = asyncio.Semaphore(most), self._work(chunks)
        record_sets = (self._captions, self._failures)
        with (
            claims_at(self._store, *record_sets) as self._claims,
            ThreadPoolExecutor(1) as self._writer,
            ThreadPoolExecutor(1) as reader,
        ):
            try:
                async with asyncio.TaskGroup() as group:
                    writing = group.create_task(self._write())
                    async with asyncio.TaskGroup() as tasks:
                        following = partial(loop.run_in_executor, reader, next, work, None)
                        ready.extend(following() for _ in range(AHEAD))
                        while found := await ready.popleft():
                            ready.append(following())
                            items, media = found
                            taken = min(most, 1 + len(media) // PLACE_BYTES)
                            for item in items:
                                for _ in range(taken):
                                    await places.acquire()
                                tasks.create_task(self._item(item, media, places, taken))
                    self._faults.close()
                    writing.cancel()
            finally:
                self._claims.end()  # the reader may wait for another run
                for each in ready:
                    each.cancel()
                await self._flush()

    async def _item(
        self, item: AskItem, media: bytes, places: asyncio.Semaphore, taken: int
    ) -> None:
        """Send one item, and keep its caption or failure for storing."""
        try:
            await self._answer(item, request_body(self._job, item, media))
            self._faults.note_success()
        except BadAnswer as error:
            if error.kind == "request":
                self._faults.add(item, ItemFault("Refused", error.message))
            elif error.again:
                self._unanswered += 1
                if self._unanswered >= SURE and not self._answered:
                    raise EnvironmentFault(error.message, hint=RETRY_HINT) from error
                self._report.failure(item.key, UNANSWERED, error.message, RETRY_HINT)
                self._claims.done([item.key])
            else:
                self._faults.note_success()
                self._fail(item, error.kind, error.message)
        finally:
            for _ in range(taken):
                places.release()

    async def _answer(self, item: AskItem, body: bytes) -> None:
        """Send a request until it is answered. Raises BadAnswer."""
        tries, busy, server = 0, 0, None
        while True:
            server = await self._servers.take(server)
            sent = time.monotonic()
            try:
                reply = await server.client.post(body, item.key)
                self._keep(item, self._read(item, reply, server), server)
                server.pace.succeeded(sent, time.monotonic())
                return
            except NoReply as error:
                why, tries = error.message, tries + error.reached
                if error.reached:
                    server.silent_since = server.silent_since or sent
                    server.pace.overloaded(sent, time.monotonic())
                else:
                    server.pause(why="cannot be reached")
                    continue
            except BadAnswer as error:
                why, tries = error.message, tries + 1
                if error.kind != "overloaded":
                    server.reached()
                else:
                    server.pace.overloaded(sent, time.monotonic())
                    server.pause(reply.wait)
                    busy += 1
                    tries -= busy < MAX_BUSY
                if not error.again:
                    raise
            finally:
                self._servers.give_back(server)
            if tries >= TRIES:
                where = server.client.endpoint.origin
                raise BadAnswer(UNANSWERED, f"{where}: {why}, {tries} times", again=True)
            if tries:
                wait = min(BACKOFF[1], BACKOFF[0] * 2 ** (tries - 1))
                await asyncio.sleep(wait * random.uniform(0.5, 1))

    def _read(self, item: AskItem, reply: Reply, server: ModelServer) -> Answer:
        """Return the answer in a reply. Raises BadAnswer, and PenstockError for what concerns all
        items."""
        if reply.echo != item.key and OUR_NAME.fullmatch(reply.echo):
            raise BadAnswer("swapped", "the answer belongs to another request", again=True)
        refuse_page(server.client, reply, self._keys)
        if reply.status == 200:
            answer = answer_in(reply.body, self._job.schema, self._keys)
            server.answered(answer.model, answer.fingerprint)
            return answer
        reason = f"HTTP {reply.status} {error_in(reply.body, self._keys)}".strip()
        if reply.status in OVERLOADED or reply.status >= 500:
            kind = "overloaded" if reply.status in OVERLOADED else "server"
            raise BadAnswer(kind, reason, again=True)
        refuse_all(server.client, reply.status, reason, self._job.model)
        where = server.client.endpoint.origin
        raise BadAnswer("request", f"{where} refuses the request: {reason}")

    def _keep(self, item: AskItem, answer: Answer, server: ModelServer) -> None:
        served = {"model": answer.model, "system_fingerprint": answer.fingerprint}
        meta = {
            "caption": answer.text,
            "tokens": answer.tokens,
            "ended": answer.ended,
            "generation": self._job.sampling,
            "served": {"host": server.client.endpoint.origin, **served},
        }
        self._made.append(Record(key=item.key, meta=meta))
        self._answered += 1

    def _refuse(self, item: AskItem, fault: ItemFault) -> None:
        self._fail(item, "refused-request", fault.message)

    def _fail(self, item: AskItem, kind: str, message: str) -> None:
        meta = {"kind": kind, "message": message, "hint": STORED_HINT}
        self._failed.append(Record(key=item.key, meta=meta))

    async def _write(self) -> None:
        """Store answers and failures while others are awaited."""
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await self._flush()

    async def _flush(self) -> None:
        """Store the answers and failures that have arrived."""
        made, failed, self._made, self._failed = self._made, self._failed, [], []
        if made or failed:
            publish = partial(self._publish, made, failed)
            # Shielded: a cancelled write would lose what it has not begun to store.
            await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._writer, publish))

    def _publish(self, made: list[Record], failed: list[Record]) -> None:
        tokens = {record.key: record.meta["tokens"] for record in made}
        for key in self._captions.publish(made):
            self._report.item(key, tokens=tokens[key])
        self._failures.publish(failed)
        for record in failed:
            self._report.failure(record.key, **record.meta)
        self._claims.done([record.key for record in (*made, *failed)])
        self._report.note(**self._servers.notes())
