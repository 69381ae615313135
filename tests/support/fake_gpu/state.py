"""The folder that the stand-in for a GPU lives in: which cards there are, who holds what, and what
was asked for.
"""

import contextlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FOLDER = "FAKE_GPU"
"""In the environment: the folder."""
MIB = 1 << 20
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """A part of a card in MIG mode, which CUDA takes for a card of its own."""

    uuid: str
    """With its `MIG-`."""
    total_bytes: int
    others: dict[int, int] = field(default_factory=dict)
    """Process id → bytes that it holds of this slice, whether there is such a process or not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """A card."""

    name: str
    uuid: str
    """With its `GPU-`, in full."""
    total_bytes: int
    capability: tuple[int, int]
    mig: tuple[Slice, ...] = ()
    """If there are any, MIG is on."""
    others: dict[int, int] = field(default_factory=dict)
    """Process id → bytes that it holds of the card, whether there is such a process or not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphFaults:
    """What goes wrong with CUDA graphs in a process. Recordings and replays are counted from 1."""

    failing: tuple[int, ...] = ()
    """Recordings that end with an error of the driver."""
    short: tuple[int, ...] = ()
    """Recordings during which memory runs out."""
    other: tuple[int, ...] = ()
    """Recordings whose replays compute something else."""
    replay: int = 0
    """The replay that ends with an error; 0: none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """Its cards and the state that its driver is in."""

    gpus: tuple[Gpu, ...]
    """In the order of the PCI bus."""
    cuda_order: tuple[int, ...] = ()
    """Places in `gpus`, in the order that CUDA counts them in unless it is told otherwise; empty:
    that of the bus."""
    driver_version: str = "580.95.05"
    wsl: bool = False
    """The driver names processes and does not tell what they hold; the kernel is Microsoft's."""
    process_list: bool = True
    memory_info: bool = True
    init_error: str = ""
    """What nvmlInit raises, such as `DriverNotLoaded`."""
    cuda_error: str = ""
    """What the first use of CUDA raises. If it begins with `CUDA error`, it is one of the first
    kernel, and the context was made before."""
    expandable_fails: bool = False
    """Whether no allocation succeeds where segments are to be expandable."""
    reserved_bytes: int = 300 * MIB
    """What is in use of every card with nobody on it."""
    context_bytes: int = 256 * MIB
    lazy_bytes: int = 24 * MIB
    """What the first matrix product, and the first convolution, in each dtype takes of a card
    beside what torch's allocator knows of."""
    graphs: GraphFaults = GraphFaults()
    own_pid_as: int = 0
    """The number under which the driver lists a process that asks for its own, and the next ones
    for further contexts; 0: its own number. Others than that are of another namespace."""

    def slot(self, uuid: str) -> tuple[Gpu, Slice | None] | None:
        """The card, and the slice of it, that bears a full uuid."""
        for gpu in self.gpus:
            if gpu.uuid == uuid:
                return gpu, None
            for part in gpu.mig:
                if part.uuid == uuid:
                    return gpu, part
        return None

    def write(self, at: Path) -> Path:
        """Write `machine.json`, and the kernel's name as it stands on such a machine; returns the
        folder."""
        at.mkdir(parents=True, exist_ok=True)
        _replace(at / "machine.json", json.dumps(asdict(self), indent=1))
        release = "6.6.87.2-microsoft-standard-WSL2" if self.wsl else "6.8.0-90-generic"
        _replace(at / "osrelease", release + "\n")
        return at


def folder() -> Path:
    return Path(os.environ[FOLDER])


def read_machine() -> Machine:
    """What `machine.json` says; looked at anew for every question, so a test may change it."""
    values: dict[str, Any] = json.loads((folder() / "machine.json").read_text(encoding="utf-8"))
    gpus = []
    for gpu in values.pop("gpus"):
        parts = tuple(Slice(**{**part, "others": _pids(part["others"])}) for part in gpu["mig"])
        more = {"mig": parts, "others": _pids(gpu["others"])}
        gpus.append(Gpu(**{**gpu, **more, "capability": tuple(gpu["capability"])}))
    order, faults = tuple(values["cuda_order"]), values["graphs"]
    faults = {name: tuple(v) if isinstance(v, list) else v for name, v in faults.items()}
    graphs = GraphFaults(**faults)
    return Machine(**{**values, "cuda_order": order, "graphs": graphs, "gpus": tuple(gpus)})


def hold(pid: int, uuid: str, size: int, at: Path, base: int | None = None) -> None:
    """Note that a process has a context on a card or slice, which takes so many bytes; with a
    base, also what its memory has grown by since it was so large."""
    _replace(at / f"{pid}.context", json.dumps({"uuid": uuid, "bytes": size, "base": base}))


def held(at: Path) -> dict[int, tuple[str, int]]:
    """Process id → the card or slice that its context is on, and what it holds of it. A context
    goes when its process does."""
    found = {}
    for path in sorted(at.glob("*.context")):
        pid = int(path.stem)
        if not _alive(pid):
            path.unlink(missing_ok=True)
            continue
        with contextlib.suppress(FileNotFoundError):
            values = json.loads(path.read_text(encoding="utf-8"))
            grown = 0 if values["base"] is None else max(0, anonymous_bytes(pid) - values["base"])
            found[pid] = (str(values["uuid"]), int(values["bytes"]) + grown)
    return found


def anonymous_bytes(pid: int | str = "self") -> int:
    """Resident memory of a process that no file backs: what tensors are in."""
    try:
        message = Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()
    except OSError:
        return 0
    return (int(message[1]) - int(message[2])) * PAGE_BYTES


def lost(at: Path) -> bool:
    """Whether the cards have fallen off the bus."""
    return (at / "lost").exists()


def log(*words: object) -> None:
    """Note what was asked of CUDA: the process, then the words."""
    line = " ".join(map(str, (os.getpid(), *words))) + "\n"
    with (folder() / "calls.log").open("a", encoding="utf-8") as file:
        file.write(line)


def _pids(values: dict[str, int]) -> dict[int, int]:
    return {int(pid): size for pid, size in values.items()}


def _alive(pid: int) -> bool:
    """Whether a process is there and has not ended: one that nobody has waited for holds none."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")


def _replace(path: Path, text: str) -> None:
    """Write at once, because others read meanwhile."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)
