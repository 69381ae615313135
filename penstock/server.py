"""Python API for serving. The server runs in a process of its own, so that a notebook and an async
program can start one.

The configuration is sent to the process as JSON on its standard input, which then stays open: the
server ends in order when it is closed, also if the program that started it was killed.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import asdict
from typing import Self, Unpack

from artifacts.disk.json_records import read_record
from artifacts.disk.json_shapes import Json
from artifacts.errors import CannotFit, EnvironmentFault, Interrupted, PenstockError, UsageError
from artifacts.packages import require_extra
from flows.core.options.serving import ADDRESS, ServeConfig
from penstock.arguments import config_with
from penstock.keywords import ServeOptions
from stages.process.output_streams import lasting_output

ERROR = "error "
"""Start of the line that the process prints instead of ADDRESS if it cannot start."""
KINDS: dict[int, type[PenstockError]] = {
    kind.exit_code: kind for kind in (UsageError, CannotFit, Interrupted, EnvironmentFault)
}
END_SECONDS = 45.0
"""Time in which a server answers the requests that it has accepted, and ends."""


def serve(*, progress: bool = False, **options: Unpack[ServeOptions]) -> "ServerProcess":
    """Start a server, as `penstock serve`, and return when it listens. `port=0` takes a free port.
    Raises PenstockError."""
    require_extra("serve", "serve")
    config = config_with(ServeConfig, options, ServeOptions.__annotations__)
    return ServerProcess(config, progress=progress)


class ServerProcess:
    """A running server. Leaving the `with` block or calling `close()` ends it after it answered the
    requests that it has accepted."""

    url: str
    """Address of the server, such as `http://127.0.0.1:8000`."""

    def __init__(self, config: ServeConfig, *, progress: bool = False) -> None:
        models = {"model": config.model, "caption_model": config.caption_model}
        served = {**models, "index": config.index, "labels": config.labels}
        self._served = ", ".join(f"{name}={value!r}" for name, value in served.items() if value)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "penstock.server"],
            process_group=0,  # an interrupted notebook cell signals the group of the kernel
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if progress else subprocess.DEVNULL,
            text=True,
        )
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(asdict(config)) + "\n")
            self._process.stdin.flush()
            self.url = self._listening()
        except BaseException:
            self._process.kill()
            self._end()
            raise

    def __repr__(self) -> str:
        ended = "" if self._process.poll() is None else ", ended"
        return f"<penstock server at {self.url}: {self._served}{ended}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> int:
        """End the server in order, and return its exit code."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
        return self._end()

    def wait(self) -> int:
        """Wait until the server ends by itself or by a signal, and return its exit code."""
        return self._process.wait()

    def _end(self) -> int:
        """Wait for the end of the process, close its pipes, and return its exit code."""
        code = self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        return code

    def _listening(self) -> str:
        """Return the address when the server listens. Raises the error that it ended with."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(ADDRESS):
                return line.removeprefix(ADDRESS).strip()
            if line.startswith(ERROR):
                fault = json.loads(line.removeprefix(ERROR))
                kind = KINDS.get(fault["exit_code"], EnvironmentFault)
                raise kind(fault["message"], hint=fault["hint"])
        raise EnvironmentFault(
            f"the server ended with exit code {self._process.wait()} before it listened",
            hint="Call serve(progress=True) to see its output",
        )


def main() -> int:
    """Serve the configuration on standard input until that is closed; returns the exit code."""
    from flows.core.console.display import Display
    from flows.interfaces.serve.server import serve as run_server

    config = read_record(ServeConfig, json.loads(sys.stdin.readline()))
    threading.Thread(target=_end_with_input, daemon=True).start()
    with lasting_output():
        try:
            run_server(config, Display())
        except PenstockError as error:
            fault: dict[str, Json] = {"message": error.message, "hint": error.hint}
            print(ERROR + json.dumps({**fault, "exit_code": error.exit_code}), flush=True)
            return error.exit_code
        return 0


def _end_with_input() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
