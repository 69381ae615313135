"""Tells when, and with which versions, something was found out or done; knows not what."""

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
    "prefect",
)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Return the versions of what decides bytes; they are recorded, not keyed."""
    found = {}
    for name in RECORDED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
