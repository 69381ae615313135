"""Asks a server whether it takes a video, with a request about a few grey frames."""

import asyncio
import json
from typing import Any

import numpy as np

from artifacts.endpoints import EndpointKeys
from artifacts.errors import EnvironmentFault
from artifacts.schema import FrameFit
from stages.ask.client import Client, Reply
from stages.ask.job import AskItem, AskJob
from stages.ask.media import clip, part
from stages.ask.servers import refuse_all
from stages.ask.wire import error_in, request_pieces

SIZE, FRAMES = 128, 8
TRIES = 5
BUSY = (408, 425, 429, 503)
PAUSE_SECONDS = 2.0


async def looks_at_video(client: Client, model: str, keys: EndpointKeys) -> bool:
    """Return whether a server takes a video and looks at it. Some servers ignore what they do not
    know: then the request takes no more tokens than its text. Raises PenstockError, NoReply."""
    shades = np.linspace(0, 255, FRAMES).astype(np.uint8)
    frames = np.broadcast_to(shades[:, None, None, None], (FRAMES, SIZE, SIZE, 3)).copy()
    content = clip(frames, [float(at) for at in range(FRAMES)], (SIZE, SIZE))
    video = await _requested(client, model, keys, part("video_url", "video/mp4", content))
    if video.status != 200:
        return False
    text = await _requested(client, model, keys, "")
    with_video, alone = (_prompt_tokens(reply) for reply in (video, text))
    return text.status != 200 or alone is None or with_video is None or with_video > alone


async def _requested(client: Client, model: str, keys: EndpointKeys, media: str) -> Reply:
    job = AskJob(
        store="",
        frames_namespace="",
        namespace="",
        items=[],
        model=model,
        endpoints=[],
        fit=FrameFit(),
        at_once=1,
        max_new_tokens=1,
    )
    item = AskItem("", "", "video", "What is it?")
    for _ in range(TRIES):
        reply = await client.post(request_pieces(job, item, media.encode()))
        if reply.status not in BUSY:
            break
        await asyncio.sleep(PAUSE_SECONDS if reply.wait is None else reply.wait)
    else:
        raise EnvironmentFault(
            f"{client.endpoint.origin} is overloaded (HTTP {reply.status})",
            hint="Try again later",
        )
    if reply.status != 200:
        reason = f"HTTP {reply.status}: {error_in(reply.body, keys)}"
        refuse_all(client, reply.status, reason, model)
    return reply


def _prompt_tokens(reply: Reply) -> int | None:
    try:
        usage: Any = json.loads(reply.body)["usage"]["prompt_tokens"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return usage if type(usage) is int else None
