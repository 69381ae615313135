"""Implements `penstock doctor`: lists what this machine has, and what blocks a run."""

import argparse
import contextlib
import os
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from artifacts.errors import EnvironmentFault, redacted
from artifacts.records.store import Store, open_store, prepare_store
from artifacts.wording import counted
from flows.commands.doctor.graph_times import time_graphs
from flows.core.checkpoint.graphs import (
    INSTALL_HINT,
    GraphSpeed,
    missing_libraries,
    tensorrt_version,
)
from flows.core.checkpoint.precision import FLASH_CAPABILITY, flash_installed, no_bfloat16
from flows.core.console.display import Display
from flows.core.console.lines import duration, print_lines, size
from flows.core.machine.budget import check_device, device_memory
from flows.core.machine.gpus import select_devices
from flows.core.machine.launch import DirectLauncher
from flows.core.machine.server_health import answers, fault_of_api
from flows.core.machine.versions import cpu_has_bfloat16, package_lines, versions
from flows.core.options.store import default_store
from stages.process.checks import Verdicts
from stages.process.device import (
    LOCKS,
    VISIBLE,
    device_capability,
    device_holders,
    device_model,
    device_name,
    device_uuid,
    driver_version,
    hidden,
    lock_path,
    on_wsl,
    other_devices,
    unused_gpu,
)
from stages.process.host_memory import cores, host_free_bytes, host_total_bytes

NOWHERE = Path("/nonexistent")
"""A path without a control group."""
SPILLS = (
    "its driver may use host memory when the GPU's is full, which is very slow: see docs/gpu.md"
)
ROW = "{:11s}{}"
LOCAL_API = "http://127.0.0.1:4200/api"
"""Where `make server` listens."""
INNER = "  {:8s}{}"


def doctor_command(given: argparse.Namespace) -> int:
    """Describe the machine, and time the graphs of a model on request. Raises EnvironmentFault if a
    run cannot work."""
    device, store = device_name(), open_store(default_store())
    print_lines(*lines(device, store))
    _check_store(store)
    check_device(device, store, force=True)
    if given.model:
        display = Display()
        display.print_line(f"measuring the graphs of {given.model} …")
        speed = time_graphs(given.model, device, store, DirectLauncher(display.on_event))
        print_lines(_graphs(given.model, speed))
    return 0


def _check_store(store: Store) -> None:
    """Check that the default store can be written. Raises EnvironmentFault."""
    try:
        prepare_store(store)
    except EnvironmentFault as error:
        hint = "Set PENSTOCK_STORE, or XDG_CACHE_HOME for all cached files, to another folder"
        raise EnvironmentFault(error.message, hint=hint) from error


def _graphs(model: str, speed: GraphSpeed) -> str:
    """Return a line that compares a model's graphs with torch."""
    times = f"{speed.graphs:.3g} s per batch, torch {speed.torch:.3g} s"
    faster = "graphs" if speed.ratio > 1 else "torch"
    text = f"{model}: {times}: {speed.ratio:.2f} times as fast"
    return ROW.format("graphs", f"{text}; --vision-backend auto uses {faster}")


def lines(device: str, store: Store) -> Iterator[str]:
    """Yield the description of the machine."""
    bf16 = "with" if cpu_has_bfloat16() else "without"
    yield ROW.format("python", f"{platform.python_version()} in {sys.prefix}")
    yield ROW.format("machine", f"{cores()} cores {bf16} bfloat16")
    yield ROW.format("memory", _memory())
    yield from _device(device)
    if device != "cpu":
        yield ROW.format("tensorrt", _tensorrt())
    yield ROW.format("libraries", ", ".join(f"{n} {v}" for n, v in versions().items()))
    yield from (ROW.format("packages", line) for line in package_lines())
    yield ROW.format("store", f"{store.url}, {size(store.free_bytes())} free")
    yield from (ROW.format("checks", line) for line in _checks(store, device))
    yield ROW.format("prefect", _prefect())


def _memory(proc: Path = Path("/proc"), system: Path = Path("/sys/fs/cgroup")) -> str:
    """Describe the memory of the host or of this process's control group."""
    free, total = host_free_bytes(proc, system), host_total_bytes(proc, system)
    text = f"{size(free)} of {size(total)} free"
    if total < host_total_bytes(proc, NOWHERE):
        return f"{text}: the limit of this control group (container, unit or job)"
    return text


def _device(device: str) -> Iterator[str]:
    if device == "cpu":
        why = f"{VISIBLE} hides all GPUs" if hidden() else "no NVIDIA driver responds"
        why = "; ".join(filter(None, [why, "" if hidden() else unused_gpu()]))
        yield ROW.format("device", f"cpu: {why}; models run on the CPU, which suits small ones")
        return
    major, minor = capability = device_capability(device)
    yield ROW.format(
        "device", f"{device} {device_uuid(device)}, compute capability {major}.{minor}"
    )
    yield INNER.format("model", f"{device_model(device)}, driver {driver_version(device)}")
    free, total = device_memory(device)
    yield INNER.format("memory", f"{size(free)} of {size(total)} free")
    if no_bfloat16(device):
        yield INNER.format("bf16", "not supported by this GPU: such checkpoints run in fp16")
    if on_wsl():
        yield INNER.format("wsl2", SPILLS)
    yield INNER.format("lock", f"{lock_path(device)}; share it with containers by {LOCKS}=FOLDER")
    for number, name, memory in other_devices(device):
        yield INNER.format(
            "besides", f"{name} with {size(memory)}: select it by {VISIBLE}={number}"
        )
    if note := select_devices(None).note:
        yield INNER.format("gpus", note)
    for pid, held in device_holders(device).items():
        yield INNER.format("held", f"{size(held)} by process {pid}")
    yield INNER.format("flash", _flash(capability))


def _checks(store: Store, device: str) -> Iterator[str]:
    """Describe the checks of this hardware whose verdicts the store keeps, oldest first."""
    with contextlib.suppress(EnvironmentFault):  # what is wrong with the store is reported later
        verdicts = Verdicts(store, device)
        for verdict in verdicts:
            yield f"{verdict.text} ({duration(max(0.0, time.time() - verdict.time))} ago)"
        if verdicts.void:
            others = f"{counted(verdicts.void, 'result')} of other hardware, drivers or versions"
            yield f"{others} do not count here: those checks run again when needed"


def _flash(capability: tuple[int, int]) -> str:
    if capability < FLASH_CAPABILITY:
        return "attention is SDPA: FlashAttention 2 needs an Ampere GPU or newer"
    if flash_installed():
        return "FlashAttention 2 is used in bf16 and fp16, if the model supports it"
    return "attention is SDPA; the package flash-attn is faster if the model supports it"


def _tensorrt() -> str:
    if missing := missing_libraries():
        return f"{' and '.join(missing)} cannot be loaded; {INSTALL_HINT}"
    return f"{tensorrt_version()}, for --vision-backend tensorrt"


def _prefect() -> str:
    api = os.environ.get("PREFECT_API_URL", "")
    if not api:
        if answers(LOCAL_API):
            return f"{LOCAL_API} responds, but PREFECT_API_URL does not name it"
        return "no server configured; `make server` starts one"
    state = "responds"
    if not answers(api):
        fault = fault_of_api(api) or "start it, or unset PREFECT_API_URL"
        state = f"does not respond: {fault}"
    return f"{redacted(api)} {state}"


def add_doctor(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default="", metavar="DIR", help="also compare this model's graphs with torch")
