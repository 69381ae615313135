"""Runs a review from the folder of a run to its end: listens, tells where, and says what was done.
It knows no page."""

import asyncio
import contextlib
import hashlib
import hmac
import logging
import os
import signal
import socket
from pathlib import Path

import uvicorn

from artifacts.words import counted
from flows.console.lines import tell
from flows.results.recorded_command import user_secret
from flows.reviewing.app import review_app
from flows.reviewing.captions import ReviewedCaptions
from flows.reviewing.rewriting import Rewriting, confirmed
from flows.serving.listening import UnsignalledServer, address_of, listening

HOST = "127.0.0.1"
WORD = 32
"""Letters of the word below which a review lies."""
GRACE_SECONDS = 5


def review(out: Path, port: int) -> None:
    """Serve the captions of a run until it is asked to end. Raises UsageError, EnvironmentFault."""
    with (
        contextlib.closing(ReviewedCaptions(out)) as captions,
        listening(HOST, port) as listener,
    ):
        command = confirmed(captions.record["command"], out)
        by_rule = "as_published" in (captions.record["plan"] or {})
        rewriting = Rewriting(command, by_rule=by_rule)
        asyncio.run(_serve(captions, rewriting, word_of(out), listener))
        counts = captions.counts()
    told = [f"{counts[name]:,} {name}" for name in ("corrected", "accepted", "rejected")]
    of_all = counted(len(captions.rows), "caption")
    tell(f"{', '.join(told)} of {of_all} in {captions.journal.path}")
    if counts and rewriting.words and not rewriting.told()["said"]:
        tell(f"outputs take this in when the same command runs again: {rewriting.line}")


def word_of(out: Path) -> str:
    """Return the word below which a folder is reviewed: one that stays, so that a page that is open
    goes on after the server died. Raises EnvironmentFault."""
    name = os.fsencode(out.absolute())
    return hmac.new(user_secret(), name, hashlib.sha256).hexdigest()[:WORD]


async def _serve(
    captions: ReviewedCaptions, rewriting: Rewriting, word: str, listener: socket.socket
) -> None:
    server = UnsignalledServer(
        uvicorn.Config(
            review_app(captions, rewriting, word),
            lifespan="off",
            ws="none",
            log_level=logging.WARNING,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
    )

    def end() -> None:
        server.should_exit = True

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, end)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    address = f"{address_of(listener)}/{word}/"
    tell(f"review at {address}", "Ctrl-C ends it; every edit is kept")
    await serving
    await rewriting.end()
