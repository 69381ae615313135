"""A measured machine whose figures are easy to reckon with."""

from typing import Any

from flows.planning.machine import Machine


def machine(**more: Any) -> Machine:
    """1 ns a parameter for one token, 2 for eight, 128 for 512: 8 GFLOP/s over prompts."""
    points = ((1, 1e-9), (8, 2e-9), (512, 128e-9))
    figures: dict[str, Any] = {
        "device": "cpu",
        "cpu": "Any CPU",
        "cores": 2,
        "torch": "2.15.0",
        "measured": "2026-11-20T12:00:00+00:00",
        "load": 0.0,
        "python_seconds": 2.0,
        "library_seconds": 3.0,
        "passes": {"fp32": points, "nf4": points},
        "quantize": {"nf4": 1e7},
        "call_seconds": 1e-4,
        "prepare": 1e7,
        "disk_write": 1e8,
        "disk_read": 1e9,
        "video_pixels": 1e9,
        "picture_pixels": 1e8,
    }
    return Machine(**{**figures, **more})
