"""Says which Prefect server is waited for, from the first moment, and waits until it answers; loads
nothing of Prefect, which takes seconds.

    PREFECT_API_URL=http://127.0.0.1:4200/api python -m scripts.await_server

Called by scripts/worker.
"""

import os
import sys
import time

from artifacts.errors import redacted

WAIT_SECONDS = 300
"""On an empty database a server's first start takes a minute on a busy machine."""
ASK_SECONDS = 0.5


def wait_for(url: str) -> bool:
    """Whether a server answers there in time."""
    from flows.deployments.server import answers

    deadline = time.monotonic() + WAIT_SECONDS
    while not answers(url):
        if time.monotonic() > deadline:
            return False
        time.sleep(ASK_SECONDS)
    return True


def main() -> int:
    url = os.environ.get("PREFECT_API_URL", "")
    if not url:
        say("PREFECT_API_URL is not set. Call scripts/worker, which sets it")
        return 2
    say(f"waiting for the Prefect server at {redacted(url)}; start one with `make server`")
    if not wait_for(url):
        say(f"no Prefect server at {redacted(url)} after {WAIT_SECONDS} s. Start one: make server")
        return 5
    say("the Prefect server answers; preparing the worker, which takes some seconds")
    return 0


def say(text: str) -> None:
    print(f"penstock: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
