"""Names the packages that the program imports, and the extra of Penstock that installs each.

Packages that every command needs come with Penstock itself and belong to no extra. A feature checks
for its packages with `require` before it starts a process or writes anything.
"""

import re
import shlex
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from artifacts.errors import MissingPackage

if TYPE_CHECKING:
    import asyncio


class Extra(NamedTuple):
    """An extra of Penstock: what it is for, and the modules that must then be importable."""

    purpose: str
    modules: tuple[str, ...]


SERVER = ("fastapi", "prometheus_client", "pydantic", "starlette", "uvicorn")
"""Modules of a server over HTTP."""
EXTRAS: Mapping[str, Extra] = {
    "bits": Extra("int8 and nf4", ("bitsandbytes",)),
    "bucket": Extra("stores and media in a bucket or on the web", ("obstore",)),
    "export": Extra("export --to onnx", ("onnx", "onnxscript")),
    "gguf": Extra("--language-gguf", ("gguf", "llama_cpp")),
    "graphs": Extra("--vision-backend onnx", ("onnxruntime",)),
    "heif": Extra("images in HEIC", ("pillow_heif",)),
    "prefect": Extra("--prefect and deployments", ("prefect", "sqlalchemy", *SERVER)),
    "ray": Extra("--ray", ("ray",)),
    "search": Extra("embed, index, search, sift and tables in Parquet", ("numkong", "pyarrow")),
    "serve": Extra("serve, review and studio", SERVER),
    "sift": Extra("sift --similar", ("faiss", "scipy")),
    "tensorboard": Extra("tune --tensorboard", ("tensorboard",)),
    "tune": Extra("tune, learn and --adapter", ("peft",)),
}
"""Name of an extra → what it is for, and its modules."""
CORE = (
    "PIL", "accelerate", "av", "google", "greenlet", "h11", "httpx2", "huggingface_hub",
    "jsonschema", "llguidance", "msgspec", "num2words", "numpy", "pynvml", "rich", "safetensors",
    "sentencepiece", "shtab", "torch", "torchvision", "transformers", "yaml",
)  # fmt: skip
"""Modules that come with Penstock itself."""
PACKAGES = {
    "PIL": "pillow",
    "cv2": "opencv-python",
    "faiss": "faiss-cpu",
    "flash_attn": "flash-attn",
    "google": "protobuf",
    "huggingface_hub": "huggingface-hub",
    "llama_cpp": "llama-cpp-python",
    "onnxruntime": "onnxruntime-gpu",
    "pillow_heif": "pillow-heif",
    "prometheus_client": "prometheus-client",
    "pynvml": "nvidia-ml-py",
    "yaml": "pyyaml",
}
"""Module → its package, where the names differ."""
NAMED = (r"pip install (?:-U )?(\w[\w.-]*(?: \w[\w-]*)*)(?= ?`)", r"requires the (\w+) library")
"""How messages of transformers name the packages that are missing, the more exact way first."""
ROOT = Path(__file__).resolve().parents[1]
"""Folder of the packages: the clone, or an environment's `site-packages`."""
_EXTRA_OF = {module: name for name, extra in EXTRAS.items() for module in extra.modules}


def is_installed(module: str) -> bool:
    """Return whether a top-level module can be found. Imports nothing."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def require(what: str, *modules: str, extra: str = "") -> None:
    """Raise MissingPackage unless these modules are installed. `what` needs them; it begins the
    error, which names `extra`, or else the extra that installs the module."""
    for module in modules:
        if not is_installed(module):
            raise _missing(what, module, extra or _EXTRA_OF.get(module, ""))


def require_extra(name: str, what: str) -> None:
    """Raise MissingPackage unless the modules of an extra are installed, as `require` does."""
    require(what, *EXTRAS[name].modules, extra=name)


def missing_extras() -> list[str]:
    """Return the names of the extras that are not installed, or only in part."""
    return [name for name, extra in EXTRAS.items() if not all(map(is_installed, extra.modules))]


def missing_package(error: BaseException, what: str) -> MissingPackage | None:
    """Return the error that names what to install, if an import failed for lack of a package that
    Penstock or an extra installs; else None. `what` needs it."""
    if not isinstance(error, ModuleNotFoundError):
        return None
    module = (error.name or "").partition(".")[0]
    if module not in (*CORE, *_EXTRA_OF) or is_installed(module):
        return None
    return _missing(what, module, _EXTRA_OF.get(module, ""))


def library_needs(what: str, error: Exception) -> MissingPackage:
    """Return the error about packages that a library lacks, which `error` names or describes: a
    model's own classes may need some that no extra installs. `what` needs them."""
    text = " ".join(str(error).split())
    named = next(filter(None, (re.findall(pattern, text) for pattern in NAMED)), [])
    packages = " ".join(dict.fromkeys(named)).lower()
    if isinstance(error, ModuleNotFoundError) and error.name:
        module = error.name.partition(".")[0]
        packages = PACKAGES.get(module, module)
    if not packages or is_installed(packages):
        return MissingPackage(
            f"{what} needs a package that is missing or too old: {text}",
            hint="Install it, and run the same command again",
        )
    names, (s, are) = packages.split(), ("s", "are") if " " in packages else ("", "is")
    return MissingPackage(
        f"{what} needs the package{s} {' and '.join(names)}, which {are} not installed",
        hint=f"Run {install_command(packages=packages)}",
    )


def install_command(extra: str = "", packages: str = "") -> str:
    """Return the command that installs an extra, or `packages`; empty: Penstock itself. Where this
    Python has no Penstock and runs the code of a clone, it is the Python of that clone, or what
    makes it."""
    package = packages or (f"'penstock[{extra}]'" if extra else "penstock")
    environment = ROOT / ".venv"
    python = shlex.quote(str(environment / "bin" / "python"))
    if not (ROOT / "scripts" / "run" / "setup").is_file():
        return f"pip install {package}"
    if Path(sys.prefix).resolve() == environment:  # scripts/run/setup installs no pip with uv
        with_pip = "" if is_installed("pip") else f"{python} -m ensurepip && "
        return f"{with_pip}{python} -m pip install {package}"
    if version_of("penstock"):
        return f"pip install {package}"
    if (environment / "bin" / "python").exists():
        return f"{python} in place of {shlex.quote(sys.executable)}"
    return f"make -C {shlex.quote(str(ROOT))} setup"


def version_of(package: str) -> str:
    """Return the installed version of a package; empty if it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _missing(what: str, module: str, extra: str) -> MissingPackage:
    package = PACKAGES.get(module, module)
    return MissingPackage(
        f"{what} needs the package {package}, which is not installed",
        hint=f"Run {install_command(extra)}",
    )


def loop_factory() -> "Callable[[], asyncio.AbstractEventLoop]":
    """Return the event loop factory of uvloop if it is installed: it takes less CPU time."""
    import asyncio

    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop
