"""Writes requests in OpenAI's protocol, with the frames of chunks, and reads the answers."""

import base64
import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from artifacts.endpoints import EndpointKeys
from artifacts.errors import EnvironmentFault
from artifacts.packs import Record
from artifacts.schema import FrameFit
from stages.ask import QUALITY, AskItem, AskJob
from stages.ask.servers import (
    OVERLOADED,
    Client,
    Reply,
    patiently,
    refuse_all,
    refuse_page,
)
from stages.decode.json_schema import follows

TICK = Fraction(1, 1000)
"""Seconds of a clip's clock."""
ENCODER = {"crf": "18", "preset": "veryfast", "threads": "1"}
"""Settings of H.264; one thread, so that the bytes are the same each time."""
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control codes other than tab and line feed."""
BYTES_PER_TOKEN = 4
"""Assumed bytes of a token, where a server does not count them."""
PROBE_SIZE, PROBE_FRAMES = 128, 8
"""Side in pixels and number of the grey frames that a server is tried with."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A server's caption of one item, and the model and the fingerprint that it states."""

    text: str
    tokens: int
    ended: str
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
    fields: dict[str, Any] = {"model": job.model, "max_tokens": job.max_new_tokens, **job.sampling}
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


def answer_in(body: bytes, schema: str, keys: EndpointKeys) -> Answer:
    """Return the answer in the body of a response. Raises BadAnswer."""
    try:
        value = json.loads(body.decode())
        choice = value["choices"][0]
        message, ended = choice["message"], choice.get("finish_reason")
        text = _text(message.get("content"))
        text.encode()
    except UnicodeEncodeError as error:
        raise BadAnswer("garbled", "the answer is no valid Unicode") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        why = f"the answer is no chat completion: {error_in(body, keys)}"
        raise BadAnswer("garbled", why, again=True) from error
    if ended == "content_filter" or (not text.strip() and message.get("refusal")):
        why = keys.cleaned(str(message.get("refusal") or "content filter"))
        raise BadAnswer("refused", f"the model refuses to answer: {why}")
    cut = " (it was cut at --max-new-tokens)" if ended == "length" else ""
    if not text.strip():
        raise BadAnswer("empty", f"the answer is empty{cut}")
    if any(key in text for key in keys.of.values()):
        raise BadAnswer("garbled", "the answer holds the key of the server")
    text = _unfenced(text) if schema else text
    if schema and not follows(schema, text):
        raise BadAnswer("schema", f"the answer does not follow the schema{cut}")
    usage = value.get("usage")
    count: Any = usage.get("completion_tokens") if isinstance(usage, Mapping) else None
    known = type(count) is int and 0 <= count < 1 << 31
    return Answer(
        text if schema else CONTROL.sub("", text).strip(),
        count if known else -(-len(text.encode()) // BYTES_PER_TOKEN),
        "length" if ended == "length" else "stop",
        keys.cleaned(str(value.get("model") or "")),
        keys.cleaned(str(value.get("system_fingerprint") or "")),
    )


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
        found = json.loads(text)
        while isinstance(found, Mapping):
            found = next(found[n] for n in ("error", "message", "detail", "object") if n in found)
        text = found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
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

    made, last = io.BytesIO(), -1
    with open_media(made, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=1 / TICK, options=ENCODER)
        stream.width, stream.height, stream.pix_fmt = *images[0].size, "yuv420p"
        stream.time_base = stream.codec_context.time_base = TICK
        for image, time in zip(images, times, strict=True):
            frame = av.VideoFrame.from_ndarray(np.asarray(image), format="rgb24")
            last = max(last + 1, round((float(time) - float(times[0])) / TICK))
            frame.pts, frame.time_base = last, TICK
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return made.getvalue()


def _jpeg(image: Image.Image) -> bytes:
    made = io.BytesIO()
    image.save(made, "JPEG", quality=QUALITY)
    return made.getvalue()


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
