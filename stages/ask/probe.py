"""Finds out whether a server takes a video, by a request with a few grey frames."""

import json
from typing import Any

from PIL import Image

from artifacts.endpoints import EndpointKeys
from artifacts.errors import EnvironmentFault
from stages.ask.client import Client, Reply
from stages.ask.job import AskItem, AskJob
from stages.ask.media import clip, part
from stages.ask.servers import OVERLOADED, patiently, refuse_all, refuse_page
from stages.ask.wire import error_in, request_body

SIZE, FRAMES = 128, 8


async def looks_at_video(client: Client, model: str, keys: EndpointKeys) -> bool:
    """Return whether a server takes a video and looks at it. Some servers ignore what they do not
    know: then the request takes no more tokens than its text. Raises PenstockError, NoReply."""
    shades = [255 * at // FRAMES for at in range(FRAMES)]
    images = [Image.new("RGB", (SIZE, SIZE), (shade,) * 3) for shade in shades]
    media = part("video_url", "video/mp4", clip(images, range(FRAMES)))
    video = await _reply(client, model, keys, media)
    if video.status != 200 or b'"choices"' not in video.body:
        return False
    text = await _reply(client, model, keys, b"")
    with_video, alone = (_prompt_tokens(reply) for reply in (video, text))
    return text.status != 200 or alone is None or with_video is None or with_video > alone


async def _reply(client: Client, model: str, keys: EndpointKeys, media: bytes) -> Reply:
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
