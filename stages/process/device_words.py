"""Turns what CUDA says of a GPU that cannot be used into advice to a person. For memory that was
not given see exit_diagnosis.py."""

from stages.process.nvml import TO_THE_CPU

LOST = (
    "See `dmesg | grep -i xid` and `nvidia-smi`, restart the machine if that does not answer, and "
    "run the same command again: nothing finished is lost"
)
NEWER = f"Update the NVIDIA driver, or install the torch that was built for it; {TO_THE_CPU}"
OLDER_TORCH = (
    "This torch has no kernels for a GPU of its age: install one that was built for it, or name "
    f"another GPU; {TO_THE_CPU}"
)
TAKEN = "Another process has the GPU for itself: see `nvidia-smi`, and run the same command again"

ADVICE = {
    "driver on your system is too old": NEWER,
    "driver version is insufficient": NEWER,
    "no kernel image is available": OLDER_TORCH,
    "busy or unavailable": TAKEN,
    "GPU is lost": LOST,
    "unspecified launch failure": LOST,
    "uncorrectable ECC error": LOST,
    "unrecoverable error": LOST,
    "NVIDIA driver was terminated": LOST,
    "CUDA driver error": LOST,
    "CUDA error: unknown error": LOST,
}
"""Sign in the last words → what to do. They are torch's, of the runtime's errors."""


def device_advice(words: str) -> str:
    """Return what to do about a GPU that failed with these words. Empty when they are of something
    else."""
    return next((advice for sign, advice in ADVICE.items() if sign in words), "")
