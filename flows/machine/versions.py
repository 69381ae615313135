"""Records the time, host and package versions of a measurement or a run."""

from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

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


def versions() -> dict[str, str]:
    """Return the versions of packages that affect the output. They are recorded, but are no part of
    a cache key."""
    found = {}
    for name in RECORDED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
