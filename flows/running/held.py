"""Holds what a run needs for itself: its folder, and what it reads in the store."""

import contextlib
from collections.abc import Iterator

from artifacts.errors import UsageError
from artifacts.store import fault_of
from flows.job.namespace_notes import namespaces_aside, note_namespaces
from flows.job.prepare import Job
from flows.machine.leases import Lease, leased
from stages.process.lock import holder, try_hold


@contextlib.contextmanager
def claiming(job: Job) -> Iterator[Lease]:
    """Keep what the job needs from being deleted by others, and note what it is of."""
    namespaces = [namespace for variant in job.ledger.variants for namespace in variant.of.values()]
    namespaces += namespaces_aside(job)
    with leased(job.store, list(dict.fromkeys(namespaces)), job.out) as lease:
        note_namespaces(job)
        yield lease


@contextlib.contextmanager
def only_run_in(job: Job, doing: str, another: str) -> Iterator[None]:
    """Hold the lock of a job's folder, so that two runs never destroy each other's files. Raises
    UsageError when another run holds it, EnvironmentFault when the folder cannot be made."""
    path = job.out / ".lock"
    try:
        job.out.mkdir(parents=True, exist_ok=True)
        lock = try_hold(path)
    except OSError as error:
        raise fault_of(error, job.out) from error
    if lock is None:
        raise UsageError(
            f"{holder(path)} is {doing} {job.out} already",
            hint=f"Wait for it, watch it with `penstock status {job.out}`, or {another}",
        )
    with lock:
        yield
