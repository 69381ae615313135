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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from artifacts.claims import WorkClaims, claims_at
from artifacts.endpoints import endpoints_of, keys_from
from artifacts.errors import PenstockError
from artifacts.pack_object import DamagedRecord
from artifacts.packs import Record
from artifacts.record_union import record_sets_of
from artifacts.store import open_store
from stages.ask.client import NoReply, Reply
from stages.ask.job import UNANSWERED, AskItem, AskJob
from stages.ask.media import media_of
from stages.ask.servers import ModelServer, ModelServers, refuse_all
from stages.ask.wire import Answer, BadAnswer, answer_in, error_in, request_pieces
from stages.memory.item_faults import ItemFault, ItemFaults
from stages.process.job import parse_job
from stages.process.report import EventReporter

Chunk = list[AskItem]
"""The items about one chunk."""
TRIES = 6
"""Requests for an item that get no caption, before it fails."""
MAX_BUSY = 60
"""Answers that the server is overloaded, before an item fails."""
BACKOFF = (0.5, 20.0)
"""First and longest wait in seconds before another try."""
FLUSH_SECONDS = 0.2
"""Time in which answers are collected to be stored together."""
BUFFER_BYTES = 96 << 20
"""Bytes of encoded frames that wait or are being sent."""
AHEAD = 8
"""Items that are encoded before a server is free."""
SURE = 8
"""Items that are refused for the same reason, and none answered, after which the stage ends."""
OUR_NAME = re.compile(r"[0-9a-f]{64}")
"""The name of a request: the key of its item."""
OVERLOADED = (408, 425, 429, 503)
RETRY_HINT = "The same command asks again; what was answered is kept"
STORED_HINT = "Change the prompt or the model, or try again with --retry-failed"


def run(job_fields: dict[str, Any], report: EventReporter) -> None:
    """Publish a caption or a failure for each item that has neither."""
    job = parse_job(AskJob, job_fields)
    store = open_store(job.store)
    frames, captions, failures = record_sets_of(
        store,
        ("frames", job.frames_namespace),
        ("captions", job.namespace),
        ("failures", job.namespace),
    )
    by_chunk: dict[str, Chunk] = {}
    for item in job.items:
        if item.key not in captions and item.key not in failures:
            by_chunk.setdefault(item.frames, []).append(item)
    report.total(sum(map(len, by_chunk.values())))
    if not by_chunk:
        return

    def missing(chunk: Chunk) -> list[str]:
        keys = [item.key for item in chunk]
        return [key for key in keys if key not in captions and key not in failures]

    def media(chunk: Chunk) -> bytes:
        key = chunk[0].frames
        if key not in frames:
            raise DamagedRecord(
                f"the frames {key[:12]}… are no longer in the store",
                hint="Run the same command again: it reads them from the video again",
            )
        return media_of(frames.read(key), chunk[0].kind, job.fit, video=job.video)

    with claims_at(store, captions, failures) as turns:
        asking = Asking(job, report, turns, first=0 if len(captions) else min(SURE, len(job.items)))
        asking.publish_captions, asking.publish_failures = captions.publish, failures.publish
        chunks = turns.claimed_batches(list(by_chunk.values()), missing)
        work = ((chunk, missing(chunk), media(chunk)) for chunk in chunks)
        try:
            asyncio.run(asking.all(work))
        except BaseExceptionGroup as group:
            raise _first(group) from None


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error of a group that says most."""
    errors = [*_flat(group)]
    return next((error for error in errors if isinstance(error, PenstockError)), errors[0])


def _flat(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for each in group.exceptions:
        if isinstance(each, BaseExceptionGroup):
            yield from _flat(each)
        else:
            yield each


class Asking:
    """One job: what was sent, and what is to be stored."""

    publish_captions: Callable[[Sequence[Record]], list[str]]
    publish_failures: Callable[[Sequence[Record]], list[str]]

    def __init__(
        self, job: AskJob, report: EventReporter, turns: WorkClaims, *, first: int
    ) -> None:
        """`first` is as in `ItemFaults`."""
        self._job = job
        self._report = report
        self._turns = turns
        self._keys = keys_from(job.keys_file)
        endpoints = endpoints_of(job.endpoints, insecure=True)
        self._servers = ModelServers(endpoints, self._keys, job.at_once, job.seen)
        self._faults = ItemFaults("ask", self._refuse, first)
        self._made: list[Record] = []
        self._failed: list[Record] = []
        self._bytes = 0
        self._room = asyncio.Condition()

    async def all(self, work: Iterator[tuple[Chunk, list[str], bytes]]) -> None:
        """Ask for every item. Raises PenstockError."""
        loop, places = asyncio.get_running_loop(), asyncio.Semaphore(self._servers.most + AHEAD)
        reader = ThreadPoolExecutor(1)
        with ThreadPoolExecutor(1) as self._writer:
            writing = asyncio.create_task(self._write())
            try:
                async with asyncio.TaskGroup() as tasks:
                    while found := await loop.run_in_executor(reader, next, work, None):
                        chunk, missing, media = found
                        items = [item for item in chunk if item.key in missing]
                        await self._take(len(media), bool(items))
                        left = [len(items)]
                        for item in items:
                            await places.acquire()
                            tasks.create_task(self._item(item, media, places, left))
                self._faults.close()
            finally:
                reader.shutdown(wait=False, cancel_futures=True)  # it may wait for another run
                writing.cancel()
                await asyncio.gather(writing, return_exceptions=True)
                await self._flush()
                await self._servers.close()

    async def _take(self, size: int, needed: bool) -> None:
        """Wait for room for the media of a chunk."""
        async with self._room:
            while needed and self._bytes and self._bytes + size > BUFFER_BYTES:
                await self._room.wait()
            self._bytes += size if needed else 0

    async def _item(
        self, item: AskItem, media: bytes, places: asyncio.Semaphore, left: list[int]
    ) -> None:
        """Ask for one item, and keep its caption or failure for storing."""
        try:
            pieces = request_pieces(self._job, item, media)
            self._keep(item, await self._answer(item, pieces))
            self._faults.note_success()
        except BadAnswer as error:
            if error.kind == "request":
                self._faults.add(item, ItemFault("Refused", error.message))
            elif error.again or error.kind == UNANSWERED:
                self._report.failure(item.key, UNANSWERED, error.message, RETRY_HINT)
                self._turns.done([item.key])
            else:
                self._faults.note_success()
                self._fail(item, error.kind, error.message)
        finally:
            places.release()
            left[0] -= 1
            if not left[0]:
                async with self._room:
                    self._bytes -= len(media)
                    self._room.notify_all()

    async def _answer(self, item: AskItem, pieces: Sequence[bytes]) -> tuple[Answer, ModelServer]:
        """Return the answer to a request. Raises BadAnswer."""
        tries, busy, server = 0, 0, None
        while True:
            server = await self._servers.take(server)
            sent = time.monotonic()
            try:
                reply = await server.client.post(pieces, item.key)
                answer = self._read(item, reply, server)
                server.answered(answer.model, answer.fingerprint)
                return answer, server
            except NoReply as error:
                why = error.message
                server.silent(sent, reached=error.reached)
                if not error.reached:
                    self._servers.check_any()
                    continue
            except BadAnswer as error:
                if not error.again:
                    server.reached()
                    raise
                why = error.message
                if error.kind == "overloaded":
                    server.overloaded(sent, reply.wait)
                    self._servers.check_any()
                    busy += 1
                    if busy < MAX_BUSY:
                        continue
                else:
                    server.reached()
            finally:
                await self._servers.give_back(server)
            tries += 1
            if tries >= TRIES:
                where = server.client.endpoint.origin
                raise BadAnswer(UNANSWERED, f"{where}: {why}, {tries} times")
            low, high = BACKOFF
            await asyncio.sleep(min(high, low * 2 ** (tries - 1)) * random.uniform(0.5, 1))

    def _read(self, item: AskItem, reply: Reply, server: ModelServer) -> Answer:
        """Return the answer in a reply. Raises BadAnswer, and PenstockError for what concerns all
        items."""
        if reply.echo != item.key and OUR_NAME.fullmatch(reply.echo):
            raise BadAnswer("swapped", "the answer belongs to another request", again=True)
        if reply.status == 200:
            answer = answer_in(reply.body, self._job.schema, self._keys)
            server.pace.succeeded(time.monotonic())
            return answer
        text = error_in(reply.body, self._keys)
        reason = f"HTTP {reply.status}{': ' if text else ''}{text}"
        if reply.status in OVERLOADED:
            raise BadAnswer("overloaded", reason, again=True)
        if reply.status >= 500:
            raise BadAnswer("server", reason, again=True)
        refuse_all(server.client, reply.status, reason, self._job.model)
        raise BadAnswer("request", f"{server.client.endpoint.origin} refuses the request: {reason}")

    def _keep(self, item: AskItem, found: tuple[Answer, ModelServer]) -> None:
        answer, server = found
        generation = {**self._job.sampling}
        meta: dict[str, Any] = {
            "caption": answer.text,
            "tokens": answer.tokens,
            "ended": answer.ended,
            "served": {
                "host": server.client.endpoint.origin,
                "model": answer.model,
                "system_fingerprint": answer.fingerprint,
            },
        }
        if generation:
            meta["generation"] = generation
        self._made.append(Record(key=item.key, meta=meta))

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
        made, self._made = self._made, []
        failed, self._failed = self._failed, []
        if made or failed:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._writer, self._store, made, failed)

    def _store(self, made: list[Record], failed: list[Record]) -> None:
        tokens = {record.key: record.meta["tokens"] for record in made}
        for key in self.publish_captions(made):
            self._report.item(key, tokens=tokens[key])
        self.publish_failures(failed)
        for record in failed:
            self._report.failure(record.key, **record.meta)
        self._turns.done([record.key for record in (*made, *failed)])
        self._report.note(**self._servers.notes())
