"""Listens on an address, and serves an application there."""

import contextlib
import errno
import mimetypes
import socket
from collections.abc import Iterator

import uvicorn

from artifacts.errors import EnvironmentFault, UsageError


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """Yield a socket that listens. Raises UsageError, EnvironmentFault."""
    mimetypes.init()  # else it reads its files while somebody is served
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OverflowError as error:
            raise UsageError(f"--port {port} is no port", hint="Give 0 to 65535") from error
        except OSError as error:
            busy = error.errno == errno.EADDRINUSE
            raise EnvironmentFault(
                f"{host}:{port} cannot be listened on ({error.strerror or error})",
                hint="Another program has it: give another --port"
                if busy
                else "Give --host, --port",
            ) from error
        yield listener


def address_of(listener: socket.socket) -> str:
    """Return where a browser finds it."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class UnsignalledServer(uvicorn.Server):
    """A server that installs no signal handlers. Its caller handles signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
