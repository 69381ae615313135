"""What the kernel's files say of memory: both versions of control groups, nested, and none."""

import os
from pathlib import Path

import pytest

from stages.process import child_environment
from stages.process.host_memory import cores, host_free_bytes, host_total_bytes, oom_kills

GIB = 1 << 30
UNLIMITED = str((1 << 63) - 4096)


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A machine of 32 GiB, 20 of them available, which has killed three processes."""
    found = tmp_path / "proc"
    (found / "self").mkdir(parents=True)
    kib = {"MemTotal": 32 * GIB // 1024, "MemFree": 1024, "MemAvailable": 20 * GIB // 1024}
    (found / "meminfo").write_text("".join(f"{n}:   {v} kB\n" for n, v in kib.items()))
    (found / "vmstat").write_text("nr_free_pages 7\noom_kill 3\n")
    return found


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def member(proc: Path, text: str) -> None:
    (proc / "self" / "cgroup").write_text(text)


def test_a_machine_without_groups_has_what_it_says(proc: Path, tmp_path: Path) -> None:
    system = tmp_path / "nothing"
    assert host_free_bytes(proc, system) == 20 * GIB
    assert host_total_bytes(proc, system) == 32 * GIB
    assert oom_kills(proc, system) == 3


def test_the_tightest_group_around_decides(proc: Path, tmp_path: Path) -> None:
    system = tmp_path / "cgroup"
    member(proc, "0::/work/night\n")
    group(system, memory__current="1")
    group(system / "work", memory__max=str(6 * GIB), memory__current=str(5 * GIB))
    group(
        system / "work" / "night",
        memory__max=str(8 * GIB),
        memory__high="max",
        memory__current=str(2 * GIB),
        memory__events="low 0\noom 2\noom_kill 1\noom_group_kill 0\n",
    )
    assert host_free_bytes(proc, system) == 1 * GIB
    assert host_total_bytes(proc, system) == 6 * GIB
    assert oom_kills(proc, system) == 1


STAT = f"anon {2 * GIB}\ninactive_file {3 * GIB}\nactive_file {2 * GIB}\n"


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({"max": str(8 * GIB), "current": str(7 * GIB), "stat": STAT}, 6),  # files give way
        ({"max": str(8 * GIB), "high": str(4 * GIB), "current": str(5 * GIB)}, 0),  # slowed down
    ],
)
def test_what_a_group_has_left(
    files: dict[str, str], free: int, proc: Path, tmp_path: Path
) -> None:
    member(proc, "0::/night\n")
    group(tmp_path / "night", **{f"memory__{name}": text for name, text in files.items()})
    assert host_free_bytes(proc, tmp_path) == free * GIB


@pytest.mark.parametrize(
    ("message", "where", "most", "used"),
    [
        ("0::/docker/abc\n", "", "max", "current"),
        ("4:memory:/docker/abc\n", "memory", "limit_in_bytes", "usage_in_bytes"),
    ],
)
def test_a_container_may_see_its_group_as_outermost(
    message: str, where: str, most: str, used: str, proc: Path, tmp_path: Path
) -> None:
    member(proc, message)
    sizes = {f"memory__{most}": str(3 * GIB), f"memory__{used}": str(GIB)}
    group(tmp_path / "cgroup" / where, **sizes)
    assert host_free_bytes(proc, tmp_path / "cgroup") == 2 * GIB


def test_version_one_counts_what_is_in_the_groups_inside(proc: Path, tmp_path: Path) -> None:
    system = tmp_path / "cgroup"
    member(proc, "5:cpu:/\n4:hugetlb,memory:/docker/abc\n0::/\n")
    group(system / "memory", memory__limit_in_bytes=UNLIMITED, memory__usage_in_bytes="9")
    group(
        system / "memory" / "docker" / "abc",
        memory__limit_in_bytes=str(4 * GIB),
        memory__usage_in_bytes=str(3 * GIB),
        memory__stat=f"inactive_file 1\ntotal_inactive_file {GIB}\ntotal_active_file 0\n",
        memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 7\n",
    )
    assert host_free_bytes(proc, system) == 2 * GIB
    assert host_total_bytes(proc, system) == 4 * GIB
    assert oom_kills(proc, system) == 7


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu__max": "250000 100000\n"}, 3),
        ({"cpu__max": "max 100000\n"}, 64),
        ({"cpu__max": "20000 100000\n"}, 1),
        ({"cpu__cfs_quota_us": "200000\n", "cpu__cfs_period_us": "100000\n"}, 2),
        ({"cpu__cfs_quota_us": "-1\n", "cpu__cfs_period_us": "100000\n"}, 64),
        ({}, 64),
    ],
)
def test_little_time_makes_few_cores(
    files: dict[str, str], expected: int, proc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64))
    old = "cpu__cfs_quota_us" in files
    member(proc, "4:cpu,cpuacct:/night\n" if old else "0::/night\n")
    system = proc.parent / "cgroup"
    group(system / "cpu" / "night" if old else system / "night", **files)
    assert cores(proc, system) == expected


def test_a_child_starts_as_many_threads_as_it_gets_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(child_environment, "cores", lambda: len(os.sched_getaffinity(0)))
    assert "OMP_NUM_THREADS" not in child_environment.child_environment()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64))
    monkeypatch.setattr(child_environment, "cores", lambda: 2)
    assert child_environment.child_environment()["OMP_NUM_THREADS"] == "2"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert child_environment.child_environment()["OMP_NUM_THREADS"] == "5"
