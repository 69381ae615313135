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
    """Yield a listening socket. Raises UsageError, EnvironmentFault."""
    mimetypes.init()  # otherwise the first request waits for its files
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OverflowError as error:
            raise UsageError(f"invalid --port {port}", hint="Give 0 to 65535") from error
        except OSError as error:
            busy = error.errno == errno.EADDRINUSE
            raise EnvironmentFault(
                f"cannot listen on {host}:{port} ({error.strerror or error})",
                hint="Another program uses it: give another --port"
                if busy
                else "Check --host and --port",
            ) from error
        yield listener


def address_of(listener: socket.socket) -> str:
    """Return the server's URL."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class UnsignalledServer(uvicorn.Server):
    """A server that installs no signal handlers. Its caller handles signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
