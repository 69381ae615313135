"""The encoder of the benchmark behind plain FastAPI, which encodes a request at a time: all of it
on a thread, and one card for all threads.

    python -m benchmarks._fastapi --port 8000
"""

import sys
import threading

import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool

from benchmarks._card_time import PATH, encode, pixels_of, told

APP, CARD = FastAPI(), threading.Lock()


def work(picture: bytes) -> dict[str, str]:
    pixels = pixels_of(picture)
    with CARD:
        return told(encode([pixels])[0])


@APP.post(PATH)
async def embed(request: Request) -> dict[str, str]:
    return await run_in_threadpool(work, await request.body())


if __name__ == "__main__":
    port = int(sys.argv[2])
    uvicorn.run(APP, host="127.0.0.1", port=port, log_level="warning", access_log=False)
