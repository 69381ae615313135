"""Uses GGUF files as a run does, each in a process of its own that is forked from one without
threads: `python -m tests.support.gguf_users CHECKPOINT FILE…` prints how each ended, as JSON."""

import json
import os
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from artifacts.errors import PenstockError
from stages.models.gguf.half import GgufDecoder
from stages.models.half_job import DescribeJob
from stages.models.inspection import run_gguf
from stages.models.loading import ModelJob, warm_source
from stages.process.job import job_fields

SECONDS = 20
"""CPU time that a file may take."""
MORE_BYTES = 256 << 20
"""Memory that a file may take beyond what the process has."""
WRONG = 9
"""Exit code of what is neither taken nor refused in words."""


class Notes:
    """Keeps nothing."""

    def note(self, **_: Any) -> None: ...


def use(checkpoint: str, file: str, copy: str) -> None:
    """Compare a file with the checkpoint, load it, read a prompt and compute a step. Raises
    PenstockError."""
    job = DescribeJob(gguf=file, model=checkpoint)
    run_gguf(job_fields(job), Notes())  # type: ignore[arg-type]
    half = ModelJob(model=checkpoint, gguf=file, gguf_copy=copy).load("language")
    decoder = next(module for module in half.modules() if isinstance(module, GgufDecoder))
    rows, places = decoder.embedded([1, 2, 3]), np.tile(np.arange(3, dtype=np.int32), (4, 1))
    decoder.context.read(rows, places)
    decoder.context.step(np.tile(rows[:1], (8, 1)), np.full((4, 8), 3, np.int32), [0])


def ended(checkpoint: str, file: str, folder: Path) -> dict[str, Any]:
    """How the process ended that used a file: its exit code or signal, what it said, seconds."""
    said, copy, started = folder / "said", folder / "copy.gguf", time.monotonic()
    said.write_text("")
    pid = os.fork()
    if pid == 0:
        code, text = WRONG, ""
        try:
            taken = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_DATA, (taken + MORE_BYTES, taken + MORE_BYTES))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
            use(checkpoint, file, str(copy))
            code = 0
        except PenstockError as error:
            code, text = error.exit_code, str(error)
        except BaseException as error:
            text = repr(error)
        finally:
            said.write_text(text)
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    copy.unlink(missing_ok=True)
    seconds = time.monotonic() - started
    return {"code": os.waitstatus_to_exitcode(status), "said": said.read_text(), "s": seconds}


def main() -> None:
    checkpoint, *files = sys.argv[1:]
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    torch.set_num_threads(1)
    warm_source(ModelJob(model=checkpoint, gguf=files[0]))
    with tempfile.TemporaryDirectory() as folder:
        found = [ended(checkpoint, file, Path(folder)) for file in files]
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
