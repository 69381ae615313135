"""How fast one Prefect server on Postgres answers many workers that do nothing but ask for work.

    python -m benchmarks.polling [--workers 1000] [--every 60] [--minutes 3]

Each worker asks for its pool's runs and says that it is alive, once in `--every` seconds, beginning
at a moment of its own, by the requests that Prefect's process worker makes. Everything is on this
machine: server, database, and those who ask.
"""

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections.abc import Sequence

import httpx

from scripts.prefect_stack import Stack, prefect_stack
from scripts.stage_processes import CheckFailed
from scripts.throwaway_postgres import throwaway_postgres

POOL = "gpu"
GOAL_SECONDS = 1.0
"""What 95 of 100 answers may take."""
TIMEOUT_SECONDS = 60.0


async def ask(client: httpx.AsyncClient, worker: int, every: float, until: float) -> list[float]:
    """Return the seconds that each of a worker's polls took."""
    took = []
    await asyncio.sleep(random.uniform(0, every))
    while time.monotonic() < until:
        began = time.monotonic()
        beat = {"name": f"worker-{worker}", "heartbeat_interval_seconds": int(every)}
        for path, body in (
            (f"/work_pools/{POOL}/workers/heartbeat", beat),
            (f"/work_pools/{POOL}/get_scheduled_flow_runs", {"limit": 1}),
        ):
            sent = time.monotonic()
            answer = await client.post(path, json=body)
            answer.raise_for_status()
            took.append(time.monotonic() - sent)
        await asyncio.sleep(max(0.0, every - (time.monotonic() - began)))
    return took


async def poll(stack: Stack, workers: int, every: float, minutes: float) -> list[float]:
    """Return the seconds that all polls took, after each worker was heard of once."""
    user, _, password = stack.login().partition(":")
    # Connections are not kept for the next minute, which the server would end meanwhile.
    limits = httpx.Limits(max_connections=200, keepalive_expiry=1.0)
    async with httpx.AsyncClient(
        base_url=stack.api, auth=(user, password), timeout=TIMEOUT_SECONDS, limits=limits
    ) as client:
        await client.post("/work_pools/", json={"name": POOL, "type": "process"})
        until = time.monotonic() + 60 * minutes + every
        each = await asyncio.gather(*(ask(client, n, every, until) for n in range(workers)))
    return [seconds for took in each for seconds in took[2:]]


def told(took: Sequence[float], minutes: float) -> float:
    """Print how long answers took; return what 95 of 100 did not exceed."""
    cuts = statistics.quantiles(took, n=100)
    print(f"{len(took):,} answers in {minutes:g} min, {len(took) / minutes / 60:.0f} a second")
    middle, most, nearly_all = cuts[49], cuts[94], cuts[98]
    print(f"median {middle:.3f} s, p95 {most:.3f} s, p99 {nearly_all:.3f} s, all {max(took):.2f} s")
    return most


def main() -> int:
    """0 when answers come in time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--every", type=float, default=60.0, help="seconds")
    parser.add_argument("--minutes", type=float, default=3.0)
    given = parser.parse_args()
    try:
        with throwaway_postgres() as database, prefect_stack(database) as stack:
            stack.serve()
            took = asyncio.run(poll(stack, given.workers, given.every, given.minutes))
    except CheckFailed as error:
        print(f"skipped: {error}")
        return 0
    return int(told(took, given.minutes) > GOAL_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
