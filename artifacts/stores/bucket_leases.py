"""Lease objects in a bucket: small notes that their writer renews, with their age by the service's
clock.
"""

import contextlib
import threading
import time
import uuid
from collections.abc import Iterator

from artifacts.errors import EnvironmentFault
from artifacts.stores.bucket_client import Bucket, Listed
from artifacts.stores.local import TEMPORARY

FOLDER = "jobs"
DEAD = b"dead\n"
"""Content of a lease object while it is removed."""


class BucketLeases:
    """The lease objects of one store. Thread-safe."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._own: dict[str, tuple[bytes, str]] = {}
        """Own lease → its text, and the version written last."""
        self._texts: dict[str, bytes] = {}
        """Lease of another process → its text, which never changes."""
        self._seen: dict[str, Listed] = {}
        self._ahead: float | None = None
        """Seconds by which the clock of the service is ahead of this process's monotonic one."""
        self._lock = threading.Lock()

    def create(self, text: bytes) -> str:
        """Write a lease object, and return its name. Raises EnvironmentFault."""
        name = f"{FOLDER}/{uuid.uuid4().hex}"
        self._own[name] = text, self._written(name, _body(text))
        return name

    def renew(self, name: str) -> None:
        """Renew a lease, also if it was taken for a dead process's and removed. Raises
        EnvironmentFault."""
        with self._lock:
            if name in self._own:
                text, version = self._own[name]
                body = _body(text)
                again = self._bucket.replace(name, body, version)
                self._own[name] = text, again or self._written(name, body)

    def _written(self, name: str, body: bytes) -> str:
        """Write a missing lease object, and return its version. Other processes only remove it."""
        for _ in range(2):
            if version := self._bucket.create(name, body):
                return version
            # Just removed by another process, or written by this one although the response was
            # lost.
            found = self._bucket.head(name)
            with contextlib.suppress(FileNotFoundError):
                if found is not None and self._bucket.get(name)[0] == body:
                    return found.version
                self._bucket.delete([name])
        return ""

    def remove(self, name: str) -> None:
        """Remove a lease of this process. If that fails, it expires."""
        with self._lock, contextlib.suppress(EnvironmentFault):
            del self._own[name]
            self._bucket.delete([name])

    def ages(self) -> Iterator[tuple[str, float]]:
        """Yield every lease with the seconds since its renewal, by the service's clock. Raises
        EnvironmentFault."""
        found = list(self._bucket.below(FOLDER))
        others = [one for one in found if one.name not in self._own]
        now = self._now() if others else 0.0
        for one in found:
            self._seen[one.name] = one
            yield one.name, max(0.0, now - one.modified) if one in others else 0.0

    def read(self, name: str) -> bytes:
        """Return the text of a lease; empty if it is gone. Raises EnvironmentFault."""
        if name in self._own:
            return self._own[name][0]
        if name not in self._texts:
            with contextlib.suppress(FileNotFoundError):
                body, _ = self._bucket.get(name)
                self._texts[name] = body.partition(b"\n")[2]
        return self._texts.get(name, b"")

    def expire(self, name: str) -> None:
        """Remove the lease of a dead process, unless it was renewed since `ages`. Raises
        EnvironmentFault."""
        seen = self._seen.pop(name, None)
        if seen is not None and self._bucket.replace(name, DEAD, seen.version) is not None:
            self._bucket.delete([name])

    def _now(self) -> float:
        """Return the time by the clock of the service, in seconds since the epoch."""
        if self._ahead is None:
            probe = f"{TEMPORARY}/{uuid.uuid4().hex}"
            self._bucket.write(probe, b"")
            requested_at = time.monotonic()
            found = self._bucket.head(probe)
            self._bucket.delete([probe])
            if found is None:
                return time.time()
            self._ahead = found.modified - requested_at
        return self._ahead + time.monotonic()


def _body(text: bytes) -> bytes:
    """Return the content of a lease object, with different bytes each time: many services derive
    the version from the bytes alone."""
    return uuid.uuid4().hex.encode() + b"\n" + text
