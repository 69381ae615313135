"""Records the time, host, CPU features and package versions of a measurement or a run.

The kernel supplies the CPU features. The module imports no model library.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, requires

from artifacts.packages import EXTRAS, install_command, missing_extras, version_of
from stages.process.host_memory import cpu_line

RECORDED = (
    "penstock",
    "torch",
    "transformers",
    "accelerate",
    "bitsandbytes",
    "av",
    "onnxruntime-gpu",
    "llama-cpp-python",
    "prefect",
)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def seconds_of(stamp: str) -> float:
    """Return a time that `now` gave in seconds since the epoch. Raises ValueError."""
    try:
        return datetime.fromisoformat(stamp).timestamp()
    except (OverflowError, OSError) as error:
        raise ValueError(f"{stamp} is too far away") from error


def versions() -> dict[str, str]:
    """Return the versions of packages that affect the output. They are recorded, but are no part of
    a cache key."""
    installed = {name: version_of(name) for name in RECORDED}
    return {name: number for name, number in installed.items() if number}


def package_lines() -> Iterator[str]:
    """Yield a line for each extra that is not installed, and for each package of Penstock that is
    missing or outside the versions that were tested."""
    from packaging.requirements import Requirement

    try:
        declared = [Requirement(text) for text in requires("penstock") or ()]
    except PackageNotFoundError:  # run from a folder of its files
        declared = []
    seen = set()
    for package in declared:
        installed = version_of(package.name)
        if not installed and package.marker is None:
            yield f"{package.name} is missing: {install_command()}"
        elif (
            installed
            and package.name not in seen
            and not package.specifier.contains(installed, True)
        ):
            seen.add(package.name)
            yield f"{package.name} {installed}: tested with {package.specifier} only"
    for name in missing_extras():
        yield f"[{name}] is not installed, for {EXTRAS[name].purpose}: {install_command(name)}"


def cpu_has_bfloat16() -> bool:
    """Return whether this CPU has bfloat16 multiplication (AVX512-BF16 or AMX)."""
    flags = cpu_line("flags").split()
    return "avx512_bf16" in flags or "amx_bf16" in flags
