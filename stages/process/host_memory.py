"""Reads the host's memory, its cores and its control group's limits from the kernel."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

UNLIMITED = 1 << 60
"""A limit this high means none: version 1 writes the largest number of pages."""
LIMITS = ("memory.max", "memory.high", "memory.limit_in_bytes")
"""Files with limits. Version 2: where the kernel kills, and where it slows processes down almost to
a halt. Version 1: where it kills."""
USAGES = ("memory.current", "memory.usage_in_bytes")
QUOTAS = ("cpu.max", "cpu.cfs_quota_us")
"""CPU time of a group per period: of version 2, with the period; of version 1."""
FILE_PAGES = ("inactive_file", "active_file")
"""Lines of `memory.stat` that count pages of files. The kernel drops these pages before it kills a
process."""


def host_free_bytes(proc: Path = Path("/proc"), system: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the memory that processes of this group can still allocate. It is the smaller of what
    the machine has available and what the tightest surrounding group has left."""
    available = [kib * 1024 for kib in _numbers_after(proc / "meminfo", "MemAvailable:")]
    available += [left for left in map(_left, groups(proc, system)) if left is not None]
    return max(0, min(available, default=0))


def host_total_bytes(proc: Path = Path("/proc"), system: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the memory of the machine, or the tightest limit around this group if that is
    smaller."""
    limits = [kib * 1024 for kib in _numbers_after(proc / "meminfo", "MemTotal:")]
    return min([*limits, *(limit for g in groups(proc, system) for limit in _limits(g))], default=0)


def oom_kills(proc: Path = Path("/proc"), system: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many processes of this group the kernel has killed for lack of memory. Without a
    group counter, return the machine's count."""
    names = ("memory.events", "memory.oom_control")
    places = [group / name for group in groups(proc, system) for name in names]
    counts = (
        count for path in (*places, proc / "vmstat") for count in _numbers_after(path, "oom_kill")
    )
    return next(counts, 0)


def cores(proc: Path = Path("/proc"), system: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the number of cores that this process may use. It is the smaller of its CPU affinity
    and its CPU quota in cores, rounded up."""
    counts = [len(os.sched_getaffinity(0))]
    for group in groups(proc, system, "cpu", QUOTAS):
        values = [word for name in QUOTAS for word in "".join(_lines(group / name)).split()]
        if len(values) == 1:  # version 1 has the period in a separate file
            values += _lines(group / "cpu.cfs_period_us")
        if len(values) == 2 and all(word.isdigit() for word in values) and int(values[1]):
            counts.append(max(1, math.ceil(int(values[0]) / int(values[1]))))
    return min(counts)


def cpu_line(name: str) -> str:
    """Return the first value of this name in /proc/cpuinfo, or an empty string."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            line = next((line for line in file if line.startswith(name)), "")
    except OSError:
        return ""
    return line.partition(":")[2].strip()


def groups(
    proc: Path = Path("/proc"),
    system: Path = Path("/sys/fs/cgroup"),
    controller: str = "memory",
    signs: Sequence[str] = USAGES,
) -> list[Path]:
    """Return the folders of the group of this process and of the groups around it, from the
    innermost out. At least one of them holds one of the files `signs`."""
    places: dict[Path, str] = {}
    for line in _lines(proc / "self" / "cgroup"):
        _, controllers, name = line.split(":", 2)
        if controller in controllers.split(","):
            places[system / controller] = name  # version 1 wins if it has the controller
        elif not controllers:
            places.setdefault(system, name)
    for top in sorted(places, key=lambda place: place == system):
        path = top / places[top].strip("/")
        # In a container the folder may show its own group as the outermost, under a longer name.
        inner = path if path.is_dir() else top
        folders = [inner, *(p for p in inner.parents if p == top or top in p.parents)]
        if any((group / name).exists() for group in folders for name in signs):
            return folders
    return []


def _left(group: Path) -> int | None:
    """Return the bytes until the nearest limit of a group, without its pages of files."""
    limits = _limits(group)
    if not limits:
        return None
    used = max((_number(group / name) or 0 for name in USAGES), default=0)
    stat = dict(line.split()[:2] for line in _lines(group / "memory.stat") if " " in line)
    # Version 1 counts the groups inside only in the lines that begin with total.
    pages = sum(int(stat.get(f"total_{name}", stat.get(name, 0))) for name in FILE_PAGES)
    return min(limits) - max(0, used - pages)


def _limits(group: Path) -> list[int]:
    numbers = (_number(group / name) for name in LIMITS)
    return [limit for limit in numbers if limit is not None and limit < UNLIMITED]


def _number(path: Path) -> int | None:
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdigit() else None


def _numbers_after(path: Path, name: str) -> list[int]:
    """Return a list with the number in the line of a file that begins with `name`; empty without
    that line."""
    lines = (line.split() for line in _lines(path))
    return [int(parts[1]) for parts in lines if len(parts) > 1 and parts[0] == name][:1]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
