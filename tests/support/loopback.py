"""Runs an HTTP server, or only listens, on this machine until a block ends."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class QuietHandler(BaseHTTPRequestHandler):
    """Keeps a connection open for several requests and logs none of them."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None: ...


@contextlib.contextmanager
def served(handler: type[BaseHTTPRequestHandler], port: int = 0) -> Iterator[int]:
    """Serve until the block ends, on a free port by default; gives the port."""
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def visited_port() -> Iterator[tuple[int, list[bytes]]]:
    """Listen on a port of this machine until the block ends; yield it, and what was sent to it."""
    sent: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen() -> None:
            while True:
                try:
                    peer = server.accept()[0]
                except OSError:
                    return
                with peer:
                    sent.append(peer.recv(100))

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        yield server.getsockname()[1], sent
        server.shutdown(socket.SHUT_RDWR)
    thread.join()
