"""Shows that a run under a worker ends complete whatever is killed, and that nothing finished is
made twice: kills the stage, the flow, the worker, both and the server at several moments each.

    python -m scripts.prove.fault_check [--moments 5] [--kinds child,flow,worker,…]
"""

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from artifacts.disk.locks import try_hold
from penstock_demo.clips import write_clips
from scripts.run.prefect_stack import Stack, prefect_stack
from scripts.run.stage_processes import CheckFailed, children, family, flow_of, stage_of, wait_gone

CLIPS = 24
DEPLOYMENT = "caption-videos/batch"
SWEEP = (
    "from flows.interfaces.prefect.sweep import sweep_crashed; sweep_crashed(older_than_seconds=0)"
)
STAGES = ("frames", "encode", "decode")
AWAY_SECONDS = 60
CANCEL_SECONDS = 10
"""A stage must be gone so soon after its run is cancelled."""
MOMENT_SECONDS = 600
"""A run must come to its moment so soon after it was asked for, on a busy machine too."""
GONE_SECONDS = 5
"""A stage must be gone so soon after its parent is."""
POLL_SECONDS = 0.005


class Faults:
    """The runs, and what is done to them. All methods raise CheckFailed."""

    def __init__(self, stack: Stack, clips: Path) -> None:
        self._stack = stack
        self._clips = clips
        self._server = stack.serve()
        self._worker = stack.work()
        self._child = self._flow = 0
        """The stage at which the run was disturbed last, and the process that started it."""
        self.held = 0
        """Moments after which all was as promised."""
        whole = self._stack.folder / "undisturbed"
        self._stack.completed(self._submit(whole))
        self._captions = (whole / "captions.jsonl").read_bytes()
        made = self._captions.count(b"\n")
        if made != CLIPS:
            raise CheckFailed(f"the undisturbed run made {made} captions")

    def child(self, stage: str, item: int) -> None:
        """The run itself starts the stage again."""
        out, run = self._begin("child", stage, item)
        self._kill(self._child)
        self._stack.completed(run)
        self._check(out, starts=1, run=run)

    def flow(self, stage: str, item: int) -> None:
        """The worker says Crashed at once, and `prefect flow-run retry` goes on."""
        out, run = self._begin("flow", stage, item)
        self._kill(self._flow)
        self._free(out)
        self._stack.completed(run, "CRASHED")
        self._stack.prefect("flow-run", "retry", run)  # what a user does on reading the state
        self._stack.completed(run)
        self._check(out, starts=2, run=run)

    def worker(self, stage: str, item: int) -> None:
        """The flow goes on without it, or dies and is started again by the sweep."""
        out, run = self._begin("worker", stage, item)
        self._kill(self._worker.pid)
        self._worker = self._stack.work()
        self._ended_or_swept(out, run)

    def both(self, stage: str, item: int) -> None:
        """Nobody is left to say that the run crashed: the automation does, and the sweep goes
        on."""
        out, run = self._begin("both", stage, item)
        self._kill(self._worker.pid, self._flow)
        self._free(out)
        self._worker = self._stack.work()
        self._stack.completed(run, "CRASHED")
        self._sweep()
        self._stack.completed(run)
        self._check(out, starts=2, run=run)

    def server(self, stage: str, item: int) -> None:
        """A server that is started again at once is missed by nobody."""
        self._without_server("server", stage, item, 0)

    def away(self, stage: str, item: int) -> None:
        """Nor one that is away for a minute."""
        self._without_server("away", stage, item, AWAY_SECONDS)

    def cancel(self, stage: str, item: int) -> None:
        """The stage ends soon, the run is Cancelled, and another run of the job completes."""
        out, run = self._begin("cancel", stage, item)
        os.kill(self._child, signal.SIGSTOP)  # the command takes longer than the rest of the run
        self._stack.prefect("flow-run", "cancel", run)
        request = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._child, signal.SIGCONT)
        wait_gone([self._child], CANCEL_SECONDS)
        self._stack.say(
            f"  its stage was gone {time.monotonic() - request:.1f} s after the command"
        )
        self._stack.completed(run, "CANCELLED")
        self._free(out)
        again = self._submit(out)
        self._stack.completed(again)
        self._check(out, run=again)

    def gone(self, stage: str, item: int) -> None:
        """A command whose server goes away for good loses no caption, and ends soon."""
        out = self._stack.folder / f"gone-{stage}-{item}"
        self._stack.say(f"gone at item {item} of {stage}")
        where = ["--out", str(out), "--store", f"{out}-store", "--batch-size=1"]
        command = ["flows.interfaces.cli.main", "caption", str(self._clips), "--model=demo", *where]
        process = self._stack.start("command", sys.executable, "-m", *command)
        self._await_item(out, stage, item)
        self._kill(*family(self._server.pid))
        while not (out / "run.json").exists() or b'"done"' not in (out / "run.json").read_bytes():
            if process.poll() is not None:
                raise CheckFailed(f"the command ended: {self._stack.log_end('command')}")
            time.sleep(0.1)
        worked = time.monotonic()
        if process.wait() != 0:
            raise CheckFailed(f"the command failed: {self._stack.log_end('command')}")
        self._stack.say(f"  it ended {time.monotonic() - worked:.0f} s after its work")
        self._server = self._stack.serve()
        self._check(out)

    def clear(self) -> None:
        """After a moment that failed: nothing of it is to be in the way of the next."""
        stages, flows = children(self._stack.folder), set[int]()
        for pid in stages:
            with contextlib.suppress(OSError):  # it has ended meanwhile
                flows.add(flow_of(pid))
        self._kill(*stages, *flows, *family(self._worker.pid))
        self._worker.wait()

    def _submit(self, out: Path) -> str:
        config = {"sources": [str(self._clips)], "model": "demo", "batch_size": 1}
        config |= {"out": str(out), "store": f"{out}-store"}
        key = f"{out.name} {time.monotonic()}"
        return self._stack.create_run(DEPLOYMENT, {"config": config}, idempotency_key=key)

    def _sweep(self) -> None:
        done = self._stack.ended_command(sys.executable, "-c", SWEEP)
        if done.returncode != 0 or "is started again" not in done.stdout + done.stderr:
            raise CheckFailed(f"the sweep started nothing\n{done.stdout}{done.stderr}")

    def _without_server(self, kind: str, stage: str, item: int, seconds: float) -> None:
        out, run = self._begin(kind, stage, item)
        self._kill(*family(self._server.pid))
        time.sleep(seconds)
        self._server = self._stack.serve()
        self._ended_or_swept(out, run)

    def _ended_or_swept(self, out: Path, run: str) -> None:
        """The run completes, by itself or when the sweep has started it again."""
        ended = self._stack.ended(run)
        if ended["state"]["type"] != "COMPLETED":
            self._sweep()
            self._stack.completed(run)
        self._check(out, run=run)

    def _begin(self, kind: str, stage: str, item: int) -> tuple[Path, str]:
        """A run, as soon as the stage has published so many items."""
        out = self._stack.folder / f"{kind}-{stage}-{item}"
        self._stack.say(f"{kind} at item {item} of {stage}")
        if self._server.poll() is not None:  # the moment before failed
            self._server = self._stack.serve()
        if self._worker.poll() is not None:
            self._worker = self._stack.work()
        run = self._submit(out)
        self._await_item(out, stage, item)
        self._held(stage)
        return out, run

    def _await_item(self, out: Path, stage: str, item: int) -> None:
        path = out / "logs" / f"{stage}.items.jsonl"
        deadline = time.monotonic() + MOMENT_SECONDS
        self._child = 0
        while not path.exists() or path.read_bytes().count(b"\n") < item:
            if time.monotonic() > deadline:
                raise CheckFailed(
                    f"{stage} never came to item {item}\n{self._stack.log_end('worker')}"
                )
            if not self._child:  # looked for before the moment, which is soon over
                self._find(stage)
            time.sleep(POLL_SECONDS)
        if not self._child or path.read_bytes().count(b"\n") == CLIPS:
            raise CheckFailed(f"{stage} was too fast to be disturbed")

    def _find(self, stage: str) -> None:
        for pid in children(self._stack.folder):
            if stage_of(pid) == stage:
                self._child, self._flow = pid, flow_of(pid)

    def _kill(self, *pids: int) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _free(self, out: Path) -> None:
        """No stage outlives its parent, and what a run held is free: the device, and its folder."""
        began = time.monotonic()
        wait_gone(children(self._stack.folder), GONE_SECONDS)
        for path in (self._stack.device_lock, out / ".lock"):
            while (lock := try_hold(path)) is None:
                if time.monotonic() - began > GONE_SECONDS:
                    raise CheckFailed(f"{path} is held though the run is gone")
                time.sleep(0.01)
            lock.close()
        self._stack.say(f"  stage gone and locks free after {time.monotonic() - began:.2f} s")

    def _held(self, stage: str) -> None:
        """What runs a model has the device's lock: else that it is free would say nothing."""
        if stage != "frames" and (lock := try_hold(self._stack.device_lock)) is not None:
            lock.close()
            raise CheckFailed(f"{stage} runs without the device's lock")

    def _check(self, out: Path, *, run: str = "", starts: int = 0) -> None:
        """Bytes as undisturbed, nothing made twice, nothing left running."""
        if (out / "captions.jsonl").read_bytes() != self._captions:
            raise CheckFailed(f"{out}/captions.jsonl is not that of the undisturbed run")
        for stage in STAGES:
            lines = (out / "logs" / f"{stage}.items.jsonl").read_text().splitlines()
            made = Counter(json.loads(line)["key"] for line in lines)
            # One that is killed may have published what it had not yet noted.
            if len(made) > CLIPS or set(made.values()) != {1}:
                raise CheckFailed(f"{stage} made {made.total()} items of {len(made)}: {out}")
        wait_gone(children(self._stack.folder), GONE_SECONDS)
        count = self._stack.ask("GET", f"/flow_runs/{run}")["run_count"] if run else 1
        if starts and count != starts:
            raise CheckFailed(f"the run was started {count} times, not {starts}")
        self.held += 1
        self._stack.say(f"  complete, started {count} times, nothing made twice")


MOMENTS = (
    ("encode", 1),
    ("decode", CLIPS // 2),
    ("frames", 1),
    ("encode", CLIPS // 2),
    ("decode", 1),
)
"""(stage, items it has published) at which something is killed; the test takes the first."""


def main() -> int:
    """0 when after every fault the run ended complete."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moments", type=int, default=5, choices=range(1, 6), help="each [5]")
    kinds = "child,flow,worker,both,server,away,gone,cancel"
    parser.add_argument("--kinds", default=kinds, help="[%(default)s]")
    given = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as clips, prefect_stack() as stack:
        write_clips(Path(clips), CLIPS, seed=11)
        faults = Faults(stack, Path(clips))
        for stage, item in MOMENTS[: given.moments]:
            for kind in given.kinds.split(","):
                fault: Callable[[str, int], Any] = getattr(faults, kind)
                try:
                    fault(stage, item)
                except CheckFailed as error:
                    failed += 1
                    faults.clear()
                    print(f"FAILED: {kind} at item {item} of {stage}: {error}", flush=True)
        print(
            f"{faults.held} of {faults.held + failed} moments: complete, same bytes, no item twice"
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
