"""Tests in a separate process whether a GPU can compute, before any work begins. The result is
cached until the GPU, its driver, torch or the kernel changes.

A driver may list a GPU that torch cannot use: the GPU is too old, or this build of torch has no
kernels for it. Otherwise the first stage that computes would fail, after frames were decoded and
weights were downloaded.
"""

import contextlib
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from artifacts.errors import CannotFit, EnvironmentFault, StageDied
from artifacts.files import read_kept, write_json
from artifacts.keys import digest_of
from artifacts.locks import try_hold
from artifacts.user_folders import machine_cache
from flows.machine.launch import DirectLauncher, StageCall, run_with_restarts
from flows.machine.versions import versions
from stages.process.device import (
    device_capability,
    device_free_bytes,
    device_model,
    device_uuid,
    driver_version,
)
from stages.process.environment import ALLOCATOR, ALLOCATOR_OLD, NOT_EXPANDABLE
from stages.process.exit_diagnosis import device_advice
from stages.process.gpu_probe import ProbeJob
from stages.process.lock import lock_path
from stages.process.nvml import USE_CPU_HINT

FORMAT = 2
"""Version of the cached result; raised when the test changes."""
LIKELY_CONTEXT_BYTES = range(200 << 20, 1536 << 20)
"""What a driver takes for a process. Outside of it, another program freed or took memory during the
test."""


def check_device(device: str, *, force: bool = False) -> None:
    """Raise EnvironmentFault if a GPU cannot compute. The test runs only without a cached result,
    or with `force`."""
    if device == "cpu":
        return
    path = _path(device)
    known = None if force else read_kept(path, FORMAT)
    if known is not None:
        _apply(known)
    elif not _is_in_use(device):
        _apply(found := try_device(device))
        if found:
            with contextlib.suppress(EnvironmentFault):  # without a cache, the next run tests again
                write_json(path, {"format": FORMAT, **found})


def probed_context_bytes(device: str) -> int:
    """Return the bytes that the GPU's driver took for the process of the cached test; 0 without
    one."""
    known = read_kept(_path(device), FORMAT) or {}
    found = int(known.get("context_bytes", 0))
    return found if found in LIKELY_CONTEXT_BYTES else 0


def device_memory(device: str) -> tuple[int, int]:
    """Return (free, total) bytes of a GPU, from the driver or, if it has none, from torch. Raises
    EnvironmentFault for a GPU that cannot compute."""
    free, total = device_free_bytes(device)
    if total or device_uuid(device) == device:  # known, or no such GPU
        return free, total
    found = try_device(device)
    return int(found.get("free_bytes", 0)), int(found.get("total_bytes", 0))


def try_device(device: str) -> dict[str, Any]:
    """Run a small computation on a GPU, and return what torch reports about it. Return an empty
    dictionary if even that runs out of memory. Raises EnvironmentFault if it fails."""
    try:
        return {**_run_probe(device), "expandable": True}
    except StageDied as error:
        if device_advice(error.message) and "driver error" not in error.message:
            raise _unusable(device, error) from error
        first = error
    except CannotFit:
        return {}
    if {ALLOCATOR, ALLOCATOR_OLD} & os.environ.keys():
        raise _unusable(device, first) from first
    # Some drivers do not support the allocator's expandable segments, which are on by default.
    os.environ[ALLOCATOR] = NOT_EXPANDABLE
    try:
        return {**_run_probe(device), "expandable": False}
    except StageDied as error:
        del os.environ[ALLOCATOR]
        raise _unusable(device, error) from first
    except CannotFit:
        return {}


def _run_probe(device: str) -> dict[str, Any]:
    with TemporaryDirectory(prefix="penstock-probe-") as folder:
        call = StageCall(
            name="probe",
            job=ProbeJob(device=device),
            device=device,
            log=Path(folder, "probe.log"),
        )
        found: dict[str, Any] = run_with_restarts(DirectLauncher(lambda *_: None), call).notes[
            "gpu"
        ]
        return found


def _unusable(device: str, error: StageDied) -> EnvironmentFault:
    major, minor = device_capability(device)
    which = f"{device_model(device) or device}, compute capability {major}.{minor}"
    message = error.message.removeprefix("the probe stage failed: ").rstrip(".")
    return EnvironmentFault(
        f"the GPU ({which}, driver {driver_version(device)}) cannot be used: {message}",
        hint=device_advice(message) or f"See `nvidia-smi`; {USE_CPU_HINT}",
    )


def _apply(found: dict[str, Any]) -> None:
    """Make the stages started from now on avoid the feature that failed."""
    if not found.get("expandable", True):
        os.environ.setdefault(ALLOCATOR, NOT_EXPANDABLE)


def _is_in_use(device: str) -> bool:
    """Return whether a process computes on the GPU now, which shows that it works."""
    held = try_hold(lock_path(device))
    if held is None:
        return True
    held.close()
    return False


def _path(device: str) -> Path:
    torch = versions().get("torch", "")
    here = [device_uuid(device), driver_version(device), torch, os.uname().release]
    return machine_cache() / "devices" / f"{digest_of(here)[:16]}.json"
