"""Builds the environment variables of a stage's process, including the cache folder of torch's
compiler."""

import os
from pathlib import Path

from artifacts.errors import UsageError
from artifacts.user_folders import user_cache
from stages.process.cgroup import cores
from stages.process.device import on_wsl

ALLOCATOR, ALLOCATOR_OLD = "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"
"""In the environment: how torch's allocator works; the old name is the one that it reads first."""
EXPANDABLE = "expandable_segments:True"
"""Setting with which freed memory can be put together again, so that less of it is lost."""
NOT_EXPANDABLE = "expandable_segments:False"
WAIT_POLICY = "OMP_WAIT_POLICY"
"""In the environment: whether threads that wait for others keep their cores busy. Bytes do not hang
on it."""
BUSY = 1.5
"""Load of the machine, by core, from which on they do not: another process has their cores, and a
stage's own threads alone make a load of 1."""


def child_environment() -> dict[str, str]:
    """Return the parent's environment, with what every stage wants set unless the user set it."""
    defaults = {
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONUNBUFFERED": "1",
        # numpy's and scipy's own, with which no stage computes: nobody can fork a process that has
        # threads.
        "OPENBLAS_NUM_THREADS": "1",
        # Left to itself, malloc keeps what was freed once it has seen it freed: loading a model in
        # 4 bit held all of it in 16 bit.
        "MALLOC_MMAP_THRESHOLD_": str(1 << 20),
    }
    if cores() < len(os.sched_getaffinity(0)):
        # Libraries start a thread for each core that they see, and all wait for those that may not
        # run.
        defaults["OMP_NUM_THREADS"] = str(cores())
    if os.getloadavg()[0] > BUSY * cores():
        defaults[WAIT_POLICY] = "PASSIVE"
    if ALLOCATOR_OLD not in os.environ and not on_wsl():  # where some drivers fail at it
        defaults[ALLOCATOR] = EXPANDABLE
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ and (folder := compiler_folder()):
        defaults["TORCHINDUCTOR_CACHE_DIR"] = folder
    roots = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    required = {
        "PYTHONPATH": os.pathsep.join(filter(None, roots)),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # as budget, lock and baseline count: see device.py
    }
    return {**defaults, **os.environ, **required}


def compiler_folder() -> str:
    """Return where torch's compiler may leave what it makes; empty where no folder can be made. The
    compiler makes at least a folder as soon as it is imported: left to itself it takes the one for
    temporary files."""
    try:
        folder = user_cache() / "torchinductor"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, UsageError):
        return ""
    return str(folder) if os.access(folder, os.W_OK) else ""
