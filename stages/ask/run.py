"""The stages of servers: they send the frames of chunks, and store captions, or the log
probabilities of labels as the first token of an answer.

How it works:

1. A thread claims the chunks that lack a caption, reads their frames and encodes them once, for all
   prompts about them.
2. Each item is sent by a task of its own, which files the answer of its own request. The pace of
   each server bounds how many are sent at once.
3. A request to an overloaded or silent server is repeated later, or sent to another one. An item
   that stays unanswered fails in this run; the next run tries it again.
4. A request that is refused, or an answer that is no caption and has no log probabilities, is
   stored as a failure of its item.
5. A refused key, an unknown model, a redirect, a changed model, servers that are all silent, and a
   server without log probabilities end the stage. What was answered until then is stored.

Requests and answers are written and read in OpenAI's protocol.
"""

import asyncio
import base64
import hashlib
import io
import json
import random
import re
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from artifacts.disk.json_shapes import Json
from artifacts.errors import EnvironmentFault, PenstockError
from artifacts.frame_fit import FrameFit
from artifacts.packages import loop_factory
from artifacts.records.claims import claims_at
from artifacts.records.packs import Record, read_made, record_sets_of
from artifacts.records.store import open_store
from artifacts.remote.endpoints import EndpointKeys, endpoints_of, keys_from
from stages.ask import QUALITY, UNANSWERED, UNSUPPORTED, AskItem, AskJob
from stages.ask.probes import TOP, label_scores
from stages.ask.servers import (
    OVERLOADED,
    Client,
    ModelServer,
    ModelServers,
    NoReply,
    Reply,
    patiently,
    refuse_all,
    refuse_page,
)
from stages.decode.json_schema import follows, is_cut
from stages.memory.oom_retry import ItemFault, ItemFaults
from stages.process.events import SUSPECTED, EventReporter
from stages.process.job import JobFields, parse_job

TICK = Fraction(1, 1000)
"""Seconds of a clip's clock."""
ENCODER = {"crf": "18", "preset": "veryfast", "threads": "1"}
"""Settings of H.264; one thread, so that the bytes are the same each time."""
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control codes other than tab and line feed."""
BYTES_PER_TOKEN = 4
"""Assumed bytes of a token, where a server does not count them."""
STOPPED = (
    *("stop", "eos", "eos_token", "end_turn", "stop_sequence", "stop_token", "complete"),
    *("completed", "finished", "end"),
)
CUT = (
    *("length", "max_tokens", "model_length", "max_length", "max_new_tokens", "max_output_tokens"),
    *("token_limit", "error_limit", "context_length", "model_context_window_exceeded"),
)
REFUSED = (
    *("content_filter", "content_filtered", "safety", "image_safety", "recitation", "blocklist"),
    *("prohibited_content", "spii", "refusal", "sensitive", "guardrail_intervened", "error_toxic"),
)
FAILED = (
    *("error", "abort", "aborted", "cancelled", "canceled", "user_cancel", "timeout"),
    *("network_error", "overloaded", "insufficient_system_resource", "malformed_function_call"),
)
"""Words in which servers state why an answer ended, in small letters: by itself; at a limit of
tokens; because of what it says; without being finished. Sources: OpenAI's, Anthropic's, Gemini's,
Mistral's, Cohere's, DeepSeek's and Zhipu's documentation, vLLM, SGLang, TGI and llama.cpp."""
PROBE_SIZE, PROBE_FRAMES = 128, 8
"""Side in pixels and number of the grey frames that a server is tried with."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A server's answer about one item, and the model and the fingerprint that it states."""

    meta: dict[str, Any]
    """What its record says of it. Of a caption, `reason` is the word for an end that is not known
    here."""
    model: str
    fingerprint: str


class BadAnswer(Exception):
    """An answer without a caption. `kind` is a word for programs; `again` says whether the same
    request may get another answer."""

    def __init__(self, kind: str, message: str, *, again: bool = False) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.again = again


def request_body(job: AskJob, item: AskItem, media: bytes) -> bytes:
    """Return the body of a request. `media` are parts of a message, as JSON without brackets."""
    fields: dict[str, Json] = {"model": job.model, "max_tokens": job.max_new_tokens, **job.sampling}
    fields |= {"logprobs": True, "top_logprobs": TOP} if item.labels else {}
    if job.seed is not None:
        digest = hashlib.sha256(f"{job.seed} {item.key}".encode()).digest()
        fields["seed"] = int.from_bytes(digest[:4]) >> 1
    if job.schema:
        schema = {"name": "caption", "schema": json.loads(job.schema), "strict": True}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    system = json.dumps({"role": "system", "content": job.system}) + ", " if job.system else ""
    head = f'{json.dumps(fields)[:-1]}, "messages": [{system}{{"role": "user", "content": ['
    question = json.dumps({"type": "text", "text": item.prompt}).encode() if item.prompt else b""
    return head.encode() + b", ".join(filter(None, (media, question))) + b"]}]}"


def answer_in(body: bytes, schema: str, labels: Sequence[str], keys: EndpointKeys) -> Answer:
    """Return the answer in the body of a response: about `labels`, or a caption without any. Raises
    BadAnswer."""
    try:
        value = json.loads(body.decode().removeprefix("\ufeff"))
        choice = value["choices"][0]
        message, reason = choice["message"], str(choice.get("finish_reason") or "")
        text = _text(message.get("content"))
        text.encode()
    except UnicodeEncodeError as error:
        raise BadAnswer("garbled", "the answer is no valid Unicode") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        why = f"the answer is no chat completion: {error_in(body, keys)}"
        raise BadAnswer("garbled", why, again=True) from error
    if value.get("error") or choice.get("error") or reason.lower() in FAILED:
        why = error_in(body, keys) if value.get("error") else reason
        raise BadAnswer("server", f"the server did not finish the answer: {why}", again=True)
    if reason.lower() in REFUSED or (not text.strip() and message.get("refusal")):
        why = keys.cleaned(str(message.get("refusal") or reason))
        raise BadAnswer("refused", f"the model refuses to answer: {why}")
    return Answer(
        _probed(choice, labels, keys) if labels else _caption(value, text, schema, keys),
        keys.cleaned(str(value.get("model") or "")),
        keys.cleaned(str(value.get("system_fingerprint") or "")),
    )


def _probed(choice: Mapping[str, Any], labels: Sequence[str], keys: EndpointKeys) -> dict[str, Any]:
    """Return what the record of a probe says. Raises BadAnswer."""
    try:
        reading = label_scores(choice, labels)
    except ValueError as error:
        why = f"the server states a log probability that is none: {keys.cleaned(str(error))}"
        raise BadAnswer(SUSPECTED, why) from error
    except (LookupError, TypeError) as error:
        raise BadAnswer(UNSUPPORTED, "the answer has no log probabilities") from error
    return {"scores": reading.scores, "bounded": reading.is_bounded}


def _caption(
    value: Mapping[str, Any], text: str, schema: str, keys: EndpointKeys
) -> dict[str, Json]:
    """Return what the record of a caption says, from a chat completion and its text. Raises
    BadAnswer."""
    choice = value["choices"][0]
    message, reason = choice["message"], str(choice.get("finish_reason") or "")
    ended, usage = reason.lower(), value.get("usage")
    cut = " (it was cut at --max-new-tokens)" if ended in CUT else ""
    if not text.strip() and _has_reasoned(message, usage):
        raise BadAnswer("thinking", f"the answer is reasoning alone{cut}: raise --max-new-tokens")
    if not text.strip() and cut:
        why = "the server's numbers may be NaN (try another precision there)"
        raise BadAnswer(SUSPECTED, f"the answer is empty up to --max-new-tokens: {why}")
    if not text.strip():
        raise BadAnswer("empty", "the answer is empty")
    if any(key in text for key in keys.of.values()):
        raise BadAnswer("garbled", "the answer holds the key of the server")
    text = _unfenced(text) if schema else text
    count: Any = usage.get("completion_tokens") if isinstance(usage, Mapping) else None
    if not (type(count) is int and 0 <= count < 1 << 31):
        count = -(-len(text.encode()) // BYTES_PER_TOKEN)
    if schema and ended in CUT and is_cut(text):
        why = f"the JSON was cut after {count} tokens: raise --max-new-tokens"
        raise BadAnswer("cut", why)
    if schema and not follows(schema, text):
        raise BadAnswer("schema", f"the answer does not follow the schema{cut}")
    is_known = ended in STOPPED + CUT
    return {
        "caption": text if schema else CONTROL.sub("", text).strip(),
        "tokens": count,
        "ended": "length" if ended in CUT else "stop",
        **({} if is_known else {"reason": keys.cleaned(reason) or "none"}),
    }


def _has_reasoned(message: Mapping[str, Any], usage: Any) -> bool:
    """Return whether an answer states that its model reasoned: beside the content (DeepSeek, vLLM,
    OpenRouter), in parts of it (Mistral, Anthropic), or by the tokens that it counts (OpenAI)."""
    parts = message.get("content")
    kinds = {part.get("type") for part in parts} if isinstance(parts, list) else set[Any]()
    details = usage.get("completion_tokens_details") if isinstance(usage, Mapping) else None
    tokens = details.get("reasoning_tokens") if isinstance(details, Mapping) else None
    beside = message.get("reasoning_content") or message.get("reasoning")
    return bool(beside or tokens or kinds & {"thinking", "reasoning"})


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(part["text"]) for part in content if part.get("type") == "text")
    if content is None or isinstance(content, str):
        return content or ""
    raise TypeError(type(content).__name__)


def _unfenced(text: str) -> str:
    """Return JSON without the one fence of Markdown around it, which small models write."""
    inner = text.strip()
    if not (inner.startswith("```") and inner.endswith("```")):
        return text
    return inner[3:-3].removeprefix("json").strip()


def error_in(body: bytes, keys: EndpointKeys) -> str:
    """Return what the body of an error says, in one line."""
    text = body.decode(errors="replace")
    try:
        reply = json.loads(text)
        while isinstance(reply, Mapping):
            reply = next(reply[n] for n in ("error", "message", "detail", "object") if n in reply)
        text = reply if isinstance(reply, str) else json.dumps(reply, ensure_ascii=False)
    except (ValueError, StopIteration, RecursionError):
        pass
    return keys.cleaned(text)


def media_of(record: Record, kind: str, fit: FrameFit, *, video: bool) -> bytes:
    """Return the parts of a message with a chunk's frames, as JSON without brackets."""
    height, width = int(record.meta["height"]), int(record.meta["width"])
    frames = np.frombuffer(record.payload, np.uint8).reshape(-1, height, width, 3)
    height, width = fit.size(height, width)
    if video and kind == "video":
        height, width = (max(2, side // 2 * 2) for side in (height, width))  # 2 by 2 pixels share
    resized = (_resized(frame, height, width) for frame in frames)  # a colour in a video
    if video and kind == "video":
        return part("video_url", "video/mp4", clip([*resized], record.meta["times"]))
    return b", ".join(part("image_url", "image/jpeg", _jpeg(image)) for image in resized)


def part(kind: str, media_type: str, content: bytes) -> bytes:
    """Return one part of a message with a medium."""
    address = f"data:{media_type};base64,{base64.b64encode(content).decode()}"
    return json.dumps({"type": kind, kind: {"url": address}}).encode()


def clip(images: Sequence[Image.Image], times: Sequence[float]) -> bytes:
    """Return images of one size as H.264 in MP4, each shown at its time."""
    import av

    from artifacts.containers import open_media

    file, last = io.BytesIO(), -1
    with open_media(file, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=1 / TICK, options=ENCODER)
        stream.width, stream.height, stream.pix_fmt = *images[0].size, "yuv420p"
        stream.time_base = stream.codec_context.time_base = TICK
        for image, time in zip(images, times, strict=True):
            frame = av.VideoFrame.from_ndarray(np.asarray(image), format="rgb24")
            last = max(last + 1, round((float(time) - float(times[0])) / TICK))
            frame.pts, frame.time_base = last, TICK
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def _jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def _resized(frame: NDArray[np.uint8], height: int, width: int) -> Image.Image:
    image = Image.fromarray(frame)
    same = image.size == (width, height)
    return image if same else image.resize((width, height), Image.Resampling.LANCZOS)


async def looks_at_video(client: Client, model: str, keys: EndpointKeys) -> bool:
    """Return whether a server takes a video and looks at it. Some servers ignore what they do not
    know: then the request takes no more tokens than its text. Raises PenstockError, NoReply."""
    shades = [255 * at // PROBE_FRAMES for at in range(PROBE_FRAMES)]
    images = [Image.new("RGB", (PROBE_SIZE, PROBE_SIZE), (shade,) * 3) for shade in shades]
    media = part("video_url", "video/mp4", clip(images, range(PROBE_FRAMES)))
    video = await _probe(client, model, keys, media)
    if video.status != 200 or b'"choices"' not in video.body:
        return False
    text = await _probe(client, model, keys, b"")
    with_video, alone = (_prompt_tokens(reply) for reply in (video, text))
    return text.status != 200 or alone is None or with_video is None or with_video > alone


async def _probe(client: Client, model: str, keys: EndpointKeys, media: bytes) -> Reply:
    item = AskItem("", "", "video", "What is it?")
    body = request_body(AskJob(model=model, max_new_tokens=1), item, media)
    reply = await patiently(client, lambda: client.post(body))
    reason = f"HTTP {reply.status} {error_in(reply.body, keys)}"
    refuse_page(client, reply, keys)
    if reply.status in OVERLOADED:
        raise EnvironmentFault(f"{client.endpoint.origin}: {reason}", hint="Try again later")
    if reply.status != 200:
        refuse_all(client, reply.status, reason, model)
    return reply


def _prompt_tokens(reply: Reply) -> int | None:
    try:
        usage: Any = json.loads(reply.body)["usage"]["prompt_tokens"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return usage if type(usage) is int else None


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


def warm(_: JobFields) -> None:
    """Import what the first request needs, before the stage's memory is measured."""
    loop_factory()
    Image.preinit()


def run(job_fields: JobFields, report: EventReporter) -> None:
    """Publish a caption or an answer, or a failure, for each item that has neither."""
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
        self._frames, self._made_before, self._failures = record_sets_of(
            store,
            ("frames", job.frames_namespace),
            (job.writes, job.namespace),
            ("failures", job.namespace),
        )
        self._keys = keys_from(job.keys_file)
        is_new = not len(self._made_before)
        self._faults = ItemFaults("ask", self._refuse, min(SURE, len(job.items)) if is_new else 0)
        self._made: list[Record] = []
        self._failed: list[Record] = []
        self._answered = self._unanswered = 0

    def missing(self, items: Chunk) -> Chunk:
        done, failed = self._made_before, self._failures
        return [i for i in items if i.key not in done and i.key not in failed]

    def _work(self, chunks: list[Chunk]) -> Iterator[tuple[Chunk, bytes]]:
        """Yield the missing items of each chunk that this process claims, and its media."""
        keys = lambda chunk: [item.key for item in self.missing(chunk)]  # noqa: E731
        for chunk in self._claims.claimed_batches(chunks, keys):
            first = chunk[0]
            missing = "the frames {} are no longer in the store"
            hint = "Run the same command again: it reads them from the video again"
            record, video = read_made(self._frames, first.frames, missing, hint), self._job.video
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
        record_sets = (self._made_before, self._failures)
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
                        while prepared := await ready.popleft():
                            ready.append(following())
                            items, media = prepared
                            taken = min(most, 1 + len(media) // PLACE_BYTES)
                            for item in items:
                                for _ in range(taken):
                                    await places.acquire()
                                tasks.create_task(self._item(item, media, places, taken))
                    self._faults.close()
                    writing.cancel()
            finally:
                self._claims.end()  # the reader may wait for another run
                for future in ready:
                    future.cancel()
                await self._flush()

    async def _item(
        self, item: AskItem, media: bytes, places: asyncio.Semaphore, taken: int
    ) -> None:
        """Send one item, and keep its answer or failure for storing."""
        try:
            await self._answer(item, request_body(self._job, item, media))
            self._faults.note_success()
        except BadAnswer as error:
            if error.kind == "request":
                self._faults.add(item, ItemFault("Refused", error.message))
            elif error.kind == SUSPECTED and item.labels:
                hint = "Look at the numbers that the server states"
                self._faults.add(item, ItemFault("NotFinite", error.message, error.kind, hint))
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
            try:
                answer = answer_in(reply.body, self._job.schema, item.labels, self._keys)
            except BadAnswer as error:
                if error.kind == UNSUPPORTED and not server.answers:
                    raise _without_logprobs(server, error.message) from error
                raise
            server.answered(answer.model, answer.fingerprint)
            return answer
        reason = f"HTTP {reply.status} {error_in(reply.body, self._keys)}".strip()
        if item.labels and "logprobs" in reason and not server.answers:
            raise _without_logprobs(server, reason)
        if reply.status in OVERLOADED or reply.status >= 500:
            kind = "overloaded" if reply.status in OVERLOADED else "server"
            raise BadAnswer(kind, reason, again=True)
        refuse_all(server.client, reply.status, reason, self._job.model)
        where = server.client.endpoint.origin
        raise BadAnswer("request", f"{where} refuses the request: {reason}")

    def _keep(self, item: AskItem, answer: Answer, server: ModelServer) -> None:
        served = {"model": answer.model, "system_fingerprint": answer.fingerprint}
        meta = {
            **answer.meta,
            "generation": self._job.sampling,
            "made_by": self._job.made_by,
            "served": {"host": server.client.endpoint.origin, **served},
        }
        self._made.append(Record(key=item.key, meta=meta))
        self._answered += 1

    def _refuse(self, item: AskItem, fault: ItemFault) -> None:
        self._fail(item, fault.kind or "refused-request", fault.message)

    def _fail(self, item: AskItem, kind: str, message: str) -> None:
        meta = {"kind": kind, "message": message, "hint": STORED_HINT}
        self._failed.append(Record(key=item.key, meta=meta))

    async def _write(self) -> None:
        """Store answers and failures while others are awaited."""
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await self._flush()

    async def _flush(self) -> None:
        done, failed, self._made, self._failed = self._made, self._failed, [], []
        if done or failed:
            publish = partial(self._publish, done, failed)
            # Shielded: a cancelled write would lose what it has not begun to store.
            await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._writer, publish))

    def _publish(self, made: list[Record], failed: list[Record]) -> None:
        tokens = {record.key: record.meta.get("tokens", 0) for record in made}
        for key in self._made_before.publish(made):
            self._report.answered(key, tokens=tokens[key])
        self._failures.publish(failed)
        for record in failed:
            self._report.failure(record.key, **record.meta)
        self._claims.done([record.key for record in (*made, *failed)])
        self._report.note(**self._servers.notes())


def _without_logprobs(server: ModelServer, reason: str) -> EnvironmentFault:
    """Return the error of a server that cannot measure labels."""
    return EnvironmentFault(
        f"{server.client.endpoint.origin} gives no log probabilities ({UNSUPPORTED}): {reason}",
        hint="`penstock ask` needs a server that answers `logprobs` with `top_logprobs`, or a "
        "model on this machine",
    )
