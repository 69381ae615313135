"""Reads CPU features from the kernel. Imports no model library."""


def cpu_has_bfloat16() -> bool:
    """Return whether this CPU has bfloat16 multiplication (AVX512-BF16 or AMX)."""
    flags = cpu_line("flags").split()
    return "avx512_bf16" in flags or "amx_bf16" in flags


def cpu_line(name: str) -> str:
    """Return the first value of this name in /proc/cpuinfo, or an empty string."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            line = next((line for line in file if line.startswith(name)), "")
    except OSError:
        return ""
    return line.partition(":")[2].strip()
