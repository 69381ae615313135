"""Finds llama.cpp's library, checks that it is the one whose interface is known, and loads it.

llama.cpp passes structures by value, and they grow between builds. Reading one with the layout of
another build would corrupt memory without an error. So before anything is loaded:

1. The library fills a buffer with its default parameters. The number of bytes that it writes must
   equal the size that the binding states.
2. A build for another processor is refused by the operating system, with one line.
"""

import ctypes
import os
import platform
from functools import cache
from importlib import import_module
from typing import Any

from artifacts.errors import EnvironmentFault
from stages.models.gguf import INSTALL
from stages.models.gguf.header import TABLE, GgufHeader, in_line

BINDING = "llama_cpp.llama_cpp"
PROBED = {
    "llama_model_default_params": "llama_model_params",
    "llama_context_default_params": "llama_context_params",
    "llama_model_quantize_default_params": "llama_model_quantize_params",
}
"""Function that returns a structure by value → its class in the binding."""
PROBE_BYTES = 4096
"""Size of the buffer that a probed function writes to."""
PADDING = 8
"""Most bytes at the end of a structure that its alignment leaves unwritten."""
WARNING, CONTINUED = 3, 5
"""Levels of llama.cpp's log: from warnings to errors, and lines that continue another."""
KEPT_LINES = 4
KEY_BYTES = 127
"""Longest key of metadata that a caller may state."""
_log: list[str] = []


@cache
def library() -> Any:
    """Return the binding's module. Raises EnvironmentFault if none is installed, or if its library
    has another interface."""
    # A crash inside must not start a debugger, and no variable may replace the library.
    os.environ["GGML_NO_BACKTRACE"] = "1"
    os.environ.pop("LLAMA_CPP_LIB_PATH", None)
    try:
        found = import_module(BINDING)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        missing = isinstance(error, ModuleNotFoundError)
        why = "llama-cpp-python is not installed" if missing else f"{error}".splitlines()[0]
        raise EnvironmentFault(f"engine gguf: {why}", hint=f"Install it: {INSTALL}") from error
    _probe(found)
    found.llama_log_set(_keep_line(found), ctypes.c_void_p(0))
    found.llama_backend_init()
    return found


def _probe(found: Any) -> None:
    """Compare the sizes of structures. Raises EnvironmentFault."""
    if platform.machine() != "x86_64":
        return  # elsewhere a structure is not returned through a pointer that can be given
    for function, structure in PROBED.items():
        expected = ctypes.sizeof(getattr(found, structure))
        written = _bytes_written(found._lib, function)
        if not expected - PADDING < written <= expected:
            raise EnvironmentFault(
                f"engine gguf: this libllama writes {written} bytes of {structure}, and the "
                f"binding has {expected}: they belong to different versions",
                hint=f"Install both together: {INSTALL}",
            )


def _bytes_written(library_: ctypes.CDLL, function: str) -> int:
    last = 0
    for fill in (0xA5, 0x5A):
        buffer = (ctypes.c_ubyte * PROBE_BYTES)(*[fill] * PROBE_BYTES)
        call = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)((function, library_))
        call(ctypes.addressof(buffer))
        last = max([last, *(at + 1 for at in range(PROBE_BYTES) if buffer[at] != fill)])
    return last


def without_tokenizer(api: Any, header: GgufHeader) -> Any:
    """Return the metadata by which llama.cpp does not read the tokenizer of a file: Penstock's own
    is used, a large one takes seconds, and a damaged one could do harm."""
    overrides = (api.llama_model_kv_override * 3)()  # the last, without a name, ends the list
    overrides[0].tag, overrides[0].key = api.LLAMA_KV_OVERRIDE_TYPE_STR, b"tokenizer.ggml.model"
    overrides[0].value.val_str = b"none"
    key = f"{header.architecture}.vocab_size".encode()
    overrides[1].tag, overrides[1].key = api.LLAMA_KV_OVERRIDE_TYPE_INT, key[:KEY_BYTES]
    overrides[1].value.val_i64 = header.tensor(TABLE).shape[0]
    return overrides


@cache
def _keep_line(found: Any) -> Any:
    """Return the callback that keeps the last warnings and errors of the log."""

    @found.llama_log_callback  # type: ignore[untyped-decorator]
    def keep(level: int, text: bytes, _: Any) -> None:
        if WARNING <= level < CONTINUED:
            _log.append(text.decode(errors="replace").strip())
            del _log[:-KEPT_LINES]

    return keep


def last_words() -> str:
    """Return the last warnings and errors of llama.cpp in one line, and forget them."""
    found = in_line(" ".join("; ".join(filter(None, _log)).split()))
    _log.clear()
    return found or "llama.cpp gave no reason"
