"""Tells whether TensorRT's libraries can be opened, and where what it makes of graphs is kept. It
is no dependency: its packages come from NVIDIA alone."""

import ctypes
from pathlib import Path

from artifacts.errors import EnvironmentFault
from artifacts.keys import digest_of
from stages.process.device import device_capability, device_model, driver_version

LIBRARIES = ("libnvinfer.so.10", "libnvonnxparser.so.10")
"""Libraries that ONNX Runtime's provider is linked with."""
GET = (
    "install TensorRT 10 (not 11) from NVIDIA: pip install 'tensorrt-cu13-libs>=10.9,<11' with its "
    "own package index, and put its folder on LD_LIBRARY_PATH"
)


def missing_libraries() -> list[str]:
    """Return the names of the libraries that cannot be opened."""
    return [name for name in LIBRARIES if _opened(name) is None]


def tensorrt_version() -> str:
    """Return the version that is installed, such as 10.13.2; empty where there is none."""
    library = _opened(LIBRARIES[0])
    if library is None:
        return ""
    major, rest = divmod(int(library.getInferLibVersion()), 10_000)  # 101302
    return f"{major}.{rest // 100}.{rest % 100}"


def check_tensorrt(device: str) -> None:
    """Raise EnvironmentFault where TensorRT cannot be had."""
    if device == "cpu":
        raise EnvironmentFault(
            "--vision-backend tensorrt needs a GPU, and there is none",
            hint="Give --vision-backend onnx",
        )
    if missing := missing_libraries():
        raise EnvironmentFault(
            f"--vision-backend tensorrt needs {' and '.join(missing)}, which cannot be opened",
            hint=f"{GET[0].upper()}{GET[1:]}; --vision-backend onnx does without",
        )


def engines_folder(local: Path, graphs: str, device: str, batch: int) -> Path:
    """Return where TensorRT keeps what it makes of graphs, by their digest: for this GPU, its
    driver and version, and batches of at most so many."""
    by = [device_model(device), device_capability(device), driver_version(device)]
    return local / "engines" / digest_of([graphs, *by, tensorrt_version(), batch])[:32]


def _opened(name: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None
