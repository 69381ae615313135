"""A server of files on this machine that behaves as servers of the web do, well or badly; knows
nothing of what they hold."""

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from tests.support.loopback import QuietHandler, served

DATE = "Sun, 22 Nov 2026 10:00:00 GMT"


@dataclass(kw_only=True, slots=True)
class Web:
    """What a server gives, and what it was asked."""

    folder: Path
    parts: bool = True
    """Whether it gives parts."""
    told: bool = True
    """Whether it tells versions and dates."""
    versions: dict[str, str] = field(default_factory=dict)
    """Name → version, where it is not the first."""
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Path and range of each request."""
    before: Callable[[str, str], int] = lambda *_: 0
    """Called with path and range; answers with another status where it is not 0, and with -1 ends
    the connection."""
    during: Callable[[str, int], bool] = lambda *_: False
    """Called with path and place of each block that is sent; True ends the connection there."""
    block: int = 1 << 16
    """Bytes of a block."""
    address: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def ranges(self, name: str) -> list[str]:
        """The ranges that were asked of a file, but for the first byte alone."""
        return [part for path, part in self.asked if name in path and part != "bytes=0-0"]


@contextlib.contextmanager
def web_server(folder: Path, **fields: object) -> Iterator[Web]:
    """Serve the files of a folder."""
    state = Web(folder=folder, **fields)  # type: ignore[arg-type]
    with served(type("Handler", (Handler,), {"state": state})) as port:
        state.address = f"http://127.0.0.1:{port}"
        yield state


class Handler(QuietHandler):
    """One connection."""

    state: Web

    def do_GET(self) -> None:
        state, expected = self.state, self.headers.get("range", "")
        with state.lock:
            state.asked.append((self.path, expected))
        name = unquote(self.path.partition("?")[0]).lstrip("/")
        status = state.before(self.path, expected)
        if status == -1:
            self.close_connection = True
            return
        file = state.folder / name
        if status or not file.is_file():
            self.answer(status or 404, b"")
            return
        content, size = file.read_bytes(), file.stat().st_size
        messages = {"etag": f'"{state.versions.get(name, "1")}"', "last-modified": DATE}
        headers = messages if state.told else {}
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", expected)
        if found is None or not state.parts:
            self.answer(200, content, **headers)
        elif int(found[1]) >= size:
            self.answer(416, b"")
        else:
            begin = int(found[1])
            part = content[begin : int(found[2] or size) + 1]
            place = f"bytes {begin}-{begin + len(part) - 1}/{size}"
            self.answer(206, part, begin, **headers, **{"content-range": place})

    def answer(self, status: int, body: bytes, begin: int = 0, /, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        with contextlib.suppress(OSError):  # who asked was killed, or saw enough
            self.end_headers()
            for at in range(0, len(body), self.state.block) if self.command != "HEAD" else ():
                if self.state.during(self.path, begin + at):
                    self.close_connection = True
                    return
                self.wfile.write(body[at : at + self.state.block])

    do_HEAD = do_GET
