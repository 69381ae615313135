"""Client of one bucket: checks its environment variables, and retries requests within limits.

obstore reads credentials and the service's endpoint from environment variables such as
`AWS_ACCESS_KEY_ID` and `AWS_ENDPOINT`. An address never contains them. The variables that locate
and authorize the service are checked before it is used, and their values are never printed.

The client retries a request until it succeeds or a time limit is reached. The number of retries is
bounded.

Names that obstore rejects, such as `a//b`, make it fail to list a whole folder of S3. Such a folder
is listed here, page by page.

Leases are small objects that their writer renews, with their age by the service's clock.
"""

import contextlib
import errno
import os
import random
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, TypeVar, cast
from urllib.parse import unquote_plus, urlencode, urlsplit
from xml.etree import ElementTree

import obstore
from obstore import exceptions
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import HTTPStore, S3Store, from_url

from artifacts.errors import EnvironmentFault, Unanswered, UsageError
from artifacts.records.stores.local import TEMPORARY

if TYPE_CHECKING:
    from obstore import GetOptions
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

SERVICES = ("AWS_", "AZURE_", "GOOGLE_")
"""Begins of the variables that obstore reads."""
ALLOW_HTTP = tuple(f"{service}ALLOW_HTTP" for service in SERVICES)
"""Variables that obstore reads too, but not where it is given other options."""
YES = ("1", "true", "yes", "on")
PLAIN = re.compile(r"[!-~]*")
"""What can stand in an address or in a header: obstore dies of anything else."""
REGION = re.compile(r"[A-Za-z0-9-]*")


def variables() -> tuple[tuple[str, str], ...]:
    """Return the variables that say where services are and who may use them."""
    return tuple(variable for variable in os.environ.items() if variable[0].startswith(SERVICES))


def allows_http() -> bool:
    """Return whether a service may be used without TLS."""
    return any(os.environ.get(name, "").lower() in YES for name in ALLOW_HTTP)


def check_variables() -> None:
    """Raise UsageError for a variable that no service can be used with; names it alone."""
    for name, value in variables():
        shape = REGION if name.endswith("_REGION") else PLAIN
        if not shape.fullmatch(value):
            raise UsageError(
                f"{name} holds a character that it cannot hold",
                hint="Copy it anew, without spaces, quotes or signs that are no ASCII",
            )


WAITS = (0.1, 0.4, 1.6, 6.4)
"""Longest waits in seconds before each retry. obstore itself has retried safe requests before."""
NOTHING = "status code: 404"
FINAL = (
    exceptions.InvalidPathError,
    exceptions.NotSupportedError,
    exceptions.PermissionDeniedError,
    exceptions.UnauthenticatedError,
    exceptions.UnknownConfigurationKeyError,
)
"""Errors that a retry cannot change."""
ADDRESS = re.compile(r"\w+://\S+")
HINT = (
    "See that the bucket is there and the network is up, and that the variables of its service "
    "say who may use it; the same command then goes on"
)

Answer = TypeVar("Answer")


class InvalidName(Unanswered):
    """A listing contains a name that obstore rejects."""


def with_retries(
    place: str,
    ask: Callable[[], Answer],
    *,
    may_lack: bool = False,
    waits: Sequence[float] | None = None,
    hint: str = HINT,
) -> Answer:
    """Call `ask` until it succeeds, with waits in between. Raises EnvironmentFault, and
    FileNotFoundError if `may_lack`."""
    for wait in (*(WAITS if waits is None else waits), None):
        try:
            return ask()
        except FileNotFoundError:
            if may_lack:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), place) from None
            why = "not found"
            break
        except BaseError as error:
            why = reason(error)
            if isinstance(error, exceptions.InvalidPathError):
                raise InvalidName(f"no response from {place} ({why})", hint=hint) from None
            if isinstance(error, FINAL) or NOTHING in why or wait is None:
                break
            time.sleep(wait * random.uniform(0.5, 1))
    # Not chained: messages of the caught error contain URLs, which may contain credentials.
    raise Unanswered(f"no response from {place} ({why})", hint=hint)


def reason(error: Exception) -> str:
    """Return the cause in an error's message, in one line and without URLs."""
    words = " ".join(str(error).partition("\n\nDebug source:")[0].split())
    return ADDRESS.sub("…", words).rpartition(" - ")[2].partition(": <")[0][:200].rstrip(": ")


REQUEST_SECONDS = 600.0
"""Longest that one request may take: a pack of some GB goes out in it."""
SILENT_SECONDS = 60.0
"""Longest that an answer may make no progress."""
INNER_TRIES = 5
"""How often obstore itself asks again after an error of the server."""
BEYOND = ("status code: 416", "but object was only")
PAGE = 1000
"""Most names that an answer to a list holds, by the protocols."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """One object as the service lists it."""

    name: str
    size: int
    """Bytes."""
    modified: float
    """Time when it was written, by the clock of the service: seconds since the epoch."""
    version: str
    """Word that changes whenever the content does."""


class Bucket:
    """The objects below one address of a service."""

    def __init__(self, url: str) -> None:
        """Take `scheme://bucket/prefix`. Raises UsageError for what is no such address."""
        parts = urlsplit(url)
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise UsageError(
                f"{parts.scheme}://{parts.hostname or ''}{parts.path} is given with more than a "
                "bucket and a folder",
                hint="Say who may use it by the environment, such as AWS_ACCESS_KEY_ID",
            )
        if not parts.netloc:
            raise UsageError(f"{url} names no bucket", hint="Give s3://BUCKET/FOLDER")
        check_variables()
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self._at = client_of(self.url, plain=allows_http())

    def get(self, name: str, offset: int = 0, length: int | None = None) -> tuple[bytes, Listed]:
        """Return bytes of an object from `offset`, at most `length` of them, and what it is.
        Raises FileNotFoundError, EnvironmentFault."""

        def ask() -> tuple[bytes, Listed]:
            span: GetOptions = {}
            if length is not None:
                span = {"range": (offset, offset + length)}
            elif offset:
                span = {"range": {"offset": offset}}
            try:
                got = obstore.get(self._at, name, options=span)
                return bytes(got.bytes()), listed(got.meta)
            except BaseError as error:
                # A range that begins where the object ends, or it is empty.
                if (
                    not any(words in str(error) for words in BEYOND)
                    or (current := self.head(name)) is None
                ):
                    raise
                return b"", current

        return self._patiently(name, ask, may_lack=True)

    def write(self, name: str, body: bytes) -> None:
        """Write an object, whatever is there. Raises EnvironmentFault."""
        self._patiently(name, lambda: obstore.put(self._at, name, body, use_multipart=False))

    def create(self, name: str, body: bytes) -> str | None:
        """Write an object unless it is there; return its version, or None if it was. Raises
        EnvironmentFault."""

        def ask() -> str | None:
            try:
                put = obstore.put(self._at, name, body, mode="create", use_multipart=False)
                return put["e_tag"] or ""
            except (AlreadyExistsError, PreconditionError):
                # Some services answer so, too, when two writers met and nothing was written.
                if self.head(name) is None:
                    raise
                return None

        return self._patiently(name, ask)

    def replace(self, name: str, body: bytes, version: str) -> str | None:
        """Write an object anew if it has this version still; return the new version, or None if
        it has not. Raises EnvironmentFault."""

        def ask() -> str | None:
            try:
                put = obstore.put(self._at, name, body, mode={"e_tag": version})
                return put["e_tag"] or ""
            except (AlreadyExistsError, PreconditionError):
                current = self.head(name)
                if current is not None and current.version == version:
                    raise
                return None
            except FileNotFoundError:
                return None

        return self._patiently(name, ask)

    def head(self, name: str) -> Listed | None:
        """Return what an object is, or None when there is none. Raises EnvironmentFault."""
        try:
            return self._patiently(
                name, lambda: listed(obstore.head(self._at, name)), may_lack=True
            )
        except FileNotFoundError:
            return None

    def delete(self, names: Sequence[str]) -> None:
        """Remove objects; no error when there are none. Raises EnvironmentFault."""

        def ask() -> None:
            try:
                obstore.delete(self._at, names)
            except FileNotFoundError:  # some services say so, and may have left the rest
                for name in names if len(names) > 1 else ():
                    self.delete([name])

        self._patiently(names[0], ask)

    def below(self, prefix: str) -> Iterator[Listed]:
        """Yield all below a folder, by name, a page at a time. Raises EnvironmentFault."""
        last: str | None = None
        while True:
            page = self._patiently(prefix, partial(self._page, prefix, last))
            yield from page
            if len(page) < PAGE:
                return
            last = page[-1].name

    def _page(self, prefix: str, after: str | None) -> list[Listed]:
        pages = obstore.list(self._at, prefix or None, offset=after, chunk_size=PAGE)
        return [listed(meta) for meta in next(iter(pages), ())]

    def inside(self, prefix: str) -> tuple[list[str], list[Listed]]:
        """Return names of the folders in a folder, and the objects in it. Raises
        EnvironmentFault."""
        there = self._patiently(
            prefix, lambda: obstore.list_with_delimiter(self._at, prefix or None)
        )
        return [*there["common_prefixes"]], [listed(meta) for meta in there["objects"]]

    def _patiently(self, name: str, ask: Callable[[], Answer], *, may_lack: bool = False) -> Answer:
        """Ask until there is an answer. Raises EnvironmentFault, and FileNotFoundError if that may
        be one."""
        return with_retries(f"{self.url}/{name}", ask, may_lack=may_lack)


def client_of(
    url: str, *, plain: bool, tries: int = INNER_TRIES, seconds: float = REQUEST_SECONDS
) -> "ObjectStore":
    """Return what asks the service at an address, also without TLS if it is `plain`. An answer may
    take so many seconds. Raises UsageError."""
    client: ClientConfig = {
        "timeout": timedelta(seconds=seconds),
        "read_timeout": timedelta(seconds=SILENT_SECONDS),
        "allow_http": plain,
    }
    retries: RetryConfig = {"max_retries": tries}
    try:
        if url.lower().startswith("http"):  # by from_url, no path may hold two slashes together
            return HTTPStore(url, client_options=client, retry_config=retries)
        return from_url(url, client_options=client, retry_config=retries)
    except (BaseError, ValueError) as error:
        where = url.partition("?")[0]
        raise UsageError(
            f"nothing can be asked at {where} ({reason(error) or error})", hint=HINT
        ) from None


def listed(meta: "obstore.ObjectMeta") -> Listed:
    """Return what obstore tells of an object."""
    modified = meta["last_modified"].timestamp()
    return Listed(
        name=meta["path"],
        size=meta["size"],
        modified=modified,
        version=meta["e_tag"] or f"{meta['size']} {modified}",
    )


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
            head = self._bucket.head(name)
            with contextlib.suppress(FileNotFoundError):
                if head is not None and self._bucket.get(name)[0] == body:
                    return head.version
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
        leases = list(self._bucket.below(FOLDER))
        others = [one for one in leases if one.name not in self._own]
        now = self._now() if others else 0.0
        for one in leases:
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
            head = self._bucket.head(probe)
            self._bucket.delete([probe])
            if head is None:
                return time.time()
            self._ahead = head.modified - requested_at
        return self._ahead + time.monotonic()


def _body(text: bytes) -> bytes:
    """Return the content of a lease object, with different bytes each time: many services derive
    the version from the bytes alone."""
    return uuid.uuid4().hex.encode() + b"\n" + text


SIGNED_SECONDS = timedelta(seconds=600)
CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def is_odd(name: str) -> bool:
    """Return whether obstore cannot request an object of this name."""
    return bool(CONTROL.search(name)) or any(part in ("", ".", "..") for part in name.split("/"))


def all_listed(url: str, recursive: bool) -> Iterator[Listed]:
    """Yield all objects below a folder, or in it, with their names relative to it. Raises
    BaseError, ElementTree.ParseError."""
    parts = urlsplit(url)
    prefix = f"{parts.path.strip('/')}/".lstrip("/")
    last = ""
    while True:
        query = {"list-type": "2", "encoding-type": "url", "prefix": prefix}
        query |= {} if recursive else {"delimiter": "/"}
        query |= {"start-after": last} if last else {}
        page = ElementTree.fromstring(_page(parts.netloc, query))
        space = page.tag.partition("}")[0] + "}" if page.tag.startswith("{") else ""
        for element in page.iter(f"{space}Contents"):
            fields = {item.tag.removeprefix(space): item.text or "" for item in element}
            last = unquote_plus(fields["Key"])
            yield Listed(
                name=last.removeprefix(prefix).removesuffix("/"),
                size=int(fields["Size"]),
                modified=datetime.fromisoformat(fields["LastModified"]).timestamp(),
                version=fields.get("ETag") or f"{fields['Size']} {fields['LastModified']}",
            )
        if page.findtext(f"{space}IsTruncated") != "true":
            return


def _page(bucket: str, query: dict[str, str]) -> bytes:
    """Return the response to a list request. obstore signs it as a read of an object with an empty
    name, at an endpoint that contains the query. The last parameter absorbs the slash before the
    name."""
    plain = allows_http()
    at = cast(S3Store, from_url(f"s3://{bucket}", client_options={"allow_http": plain}))
    base = obstore.sign(at, "GET", "", SIGNED_SECONDS).partition("?")[0].rstrip("/")
    encoded_query = urlencode({**query, "x-id": ""})
    with_query = S3Store(
        bucket,
        config={"endpoint": f"{base}?{encoded_query}", "virtual_hosted_style_request": True},
        client_options={"allow_http": plain},
    )
    address = obstore.sign(with_query, "GET", "", SIGNED_SECONDS)
    return bytes(obstore.get(client_of(address, plain=plain), "").bytes())
