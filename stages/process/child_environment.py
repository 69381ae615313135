"""The environment and the working folder of stages."""

import os
from pathlib import Path

from artifacts.disk.paths import machine_cache
from stages.process.device import on_wsl
from stages.process.host_memory import cores

ALLOCATOR, ALLOCATOR_OLD = "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"
"""Environment variables for torch's allocator; it reads the old name first."""
EXPANDABLE = "expandable_segments:True"
"""Setting that reduces fragmentation by joining freed segments."""
NOT_EXPANDABLE = "expandable_segments:False"
WAIT_POLICY = "OMP_WAIT_POLICY"
"""Environment variable: whether waiting OpenMP threads keep their cores busy. It does not affect
results."""
SEARCHED = ("PYTHONPATH", "PATH", "LD_LIBRARY_PATH")
"""Environment variables with folders that are searched for code."""
ROOT = os.sep
"""Working folder of stages. The user's may hold a stranger's libcuda.so.1, which cuSPARSELt would
load: its RUNPATH has an empty entry."""
FOLDERS = (
    *("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "XDG_STATE_HOME", "TMPDIR"),
    *("PENSTOCK_CPU_LOCK", "PENSTOCK_LOCKS", "PENSTOCK_NEARBY", "PENSTOCK_STORE"),
    *("PREFECT_HOME", "PREFECT_PROFILES_PATH", "PREFECT_LOGGING_SETTINGS_PATH"),
)
"""Environment variables that may be relative to the user's working folder."""
BUSY = 1.5
"""Load per core from which waiting threads sleep, because another process needs the cores. A
stage's own threads make a load of 1."""


def child_environment() -> dict[str, str]:
    """Return the parent's environment with defaults for stages; variables set by the user take
    precedence. The current folder, which may be a stranger's, is not searched for code."""
    defaults = {
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        # From 1.29 on, importing ONNX Runtime makes an id of this device and reports its use.
        "ORT_DISABLE_TELEMETRY": "1",
        "PYTHONUNBUFFERED": "1",
        # numpy and scipy: no stage computes with them, and a process with threads cannot fork.
        "OPENBLAS_NUM_THREADS": "1",
        # By default malloc keeps large freed blocks: loading a model in 4 bit held all of it in
        # 16 bit.
        "MALLOC_MMAP_THRESHOLD_": str(1 << 20),
        # On Hopper and Blackwell, torch prefers cuDNN's attention, which builds a plan for each new
        # length. Without it the same kernels serve every generation of cards.
        "TORCH_CUDNN_SDPA_DEPRIORITIZED": "1",
    }
    if cores() < len(os.sched_getaffinity(0)):
        # Libraries start one thread per visible core, and wait for those that may not run.
        defaults["OMP_NUM_THREADS"] = str(cores())
    if os.getloadavg()[0] > BUSY * cores():
        defaults[WAIT_POLICY] = "PASSIVE"
    if ALLOCATOR_OLD not in os.environ and not on_wsl():  # some drivers under WSL2 fail with it
        defaults[ALLOCATOR] = EXPANDABLE
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ and (folder := compiler_folder()):
        defaults["TORCHINDUCTOR_CACHE_DIR"] = folder
    searched = {name: _absolute(os.environ[name]) for name in SEARCHED if name in os.environ}
    roots = [str(Path(__file__).resolve().parents[2]), searched.get("PYTHONPATH", "")]
    required = {
        **searched,
        "PYTHONPATH": os.pathsep.join(filter(None, roots)),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # the order of device.py
    }
    for name in FOLDERS:
        if (path := os.environ.get(name)) and not path.startswith("~") and "://" not in path:
            required[name] = os.path.abspath(path)
    if os.path.expanduser("~").startswith("~"):
        # Libraries would take a folder `~` of the current folder for the user's home.
        required["HOME"] = os.devnull
    environment = {**defaults, **os.environ, **required}
    environment.pop("PYTHONOPTIMIZE", None)  # transformers needs docstrings
    return environment


def _absolute(folders: str) -> str:
    """Return a list of folders without those that depend on the current folder: an empty entry is
    the current folder itself."""
    return os.pathsep.join(filter(os.path.isabs, folders.split(os.pathsep)))


def compiler_folder() -> str:
    """Return the cache folder for torch's compiler; empty if none can be created. The compiler
    creates a folder when it is imported, by default under the temporary folder."""
    try:
        folder = machine_cache() / "torchinductor"
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return ""
    return str(folder) if os.access(folder, os.W_OK) else ""
