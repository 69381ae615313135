"""Finds what lies at an address, and reads it by parts; keeps nothing here."""

import glob
import uuid
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from operator import itemgetter
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import BaseError, NotSupportedError

from artifacts.errors import Unanswered
from artifacts.remote.addresses import Origin, is_web, unsigned
from artifacts.stamps import FileChanged
from artifacts.stores.bucket import BEYOND, INNER_TRIES, Bucket, Listed, client_of, listed
from artifacts.stores.credentials import allows_http, check_variables
from artifacts.stores.patience import HINT, WAITS, Answer, patiently, reason

if TYPE_CHECKING:  # obstore has these names for type checkers alone
    from obstore.store import ObjectStore

WEB_WAITS = (0.4, 1.6)
"""Seconds before a server of the web is asked again; in a long list many may be gone for ever."""
WEB_TRIES = 2
WEB_HINT = (
    "See that the address opens elsewhere and the network is up; the same command then goes on"
)
CLIENTS = 64
"""Servers whose connections are kept."""


def origin_of(address: str) -> Origin:
    """Return what lies at an address. Raises FileNotFoundError, UsageError, EnvironmentFault."""
    client, name = _client(address)

    def ask() -> "obstore.ObjectMeta":
        try:
            # Not a HEAD, which a signed address does not let through.
            return obstore.get(client, name, options={"range": (0, 1)}).meta
        except NotSupportedError:
            return obstore.get(client, name).meta
        except BaseError as error:
            if not any(words in str(error) for words in BEYOND):
                raise
            return obstore.head(client, name)  # it is empty

    return _origin(address, listed(_asked(address, ask)))


def origins_below(address: str, recursive: bool) -> Iterator[tuple[str, Origin]]:
    """Yield what lies in a folder of a bucket, with its name from there on, in the order of a
    folder on disk. Names that begin with a dot are left out. Raises UsageError,
    EnvironmentFault."""
    folder = Bucket(address)
    found = folder.below("") if recursive else folder.inside("")[1]
    for each in sorted(found, key=lambda each: _walked(each.name)):
        if not any(part.startswith(".") for part in each.name.split("/")):
            yield each.name, _origin(f"{folder.url}/{each.name}", each)


def _walked(name: str) -> list[tuple[bool, str]]:
    """Return what sorts names as a walk does that sees a folder's files before its folders."""
    *folders, file = name.split("/")
    return [*((True, folder) for folder in folders), (False, file)]


def origins_matching(pattern: str) -> Iterator[Origin]:
    """Yield what in a bucket a pattern names, by name; `**` stands for any folders. Raises
    UsageError, EnvironmentFault."""
    scheme, _, place = pattern.partition("://")
    parts = place.split("/")
    first = next(at for at, part in enumerate(parts) if glob.has_magic(part))
    wanted = parts[max(1, first) :]  # no bucket's name is a pattern
    folder = f"{scheme}://{'/'.join(parts[: max(1, first)])}"
    inside = origins_below(folder, recursive=len(wanted) > 1)
    for name, origin in sorted(inside, key=itemgetter(0)):
        if _fits(name.split("/"), wanted):
            yield origin


def part_of(origin: Origin, offset: int, length: int) -> bytes | None:
    """Return that many bytes of what was found, from `offset`; None where the server gives no
    parts. Raises FileChanged where something else lies there now, FileNotFoundError and
    EnvironmentFault."""
    client, name = _client(origin.address)

    def ask() -> tuple[bytes, Listed] | None:
        try:
            got = obstore.get(client, name, options={"range": (offset, offset + length)})
        except NotSupportedError:
            return None
        except BaseError as error:
            if any(words in str(error) for words in BEYOND):
                raise FileChanged(origin.place) from None
            raise
        return bytes(got.bytes()), listed(got.meta)

    answer = _asked(origin.address, ask)
    if answer is None:
        return None
    body, found = answer
    _same(origin, found)
    return body


def whole(origin: Origin) -> Iterator[bytes]:
    """Yield all bytes of what was found, in order. Raises what `part_of` raises."""
    client, name = _client(origin.address)
    got = _asked(origin.address, lambda: obstore.get(client, name))
    _same(origin, listed(got.meta))
    try:
        yield from map(bytes, got.stream())
    except BaseError as error:
        raise Unanswered(
            f"{origin.place} ended in the middle ({reason(error)})", hint=WEB_HINT
        ) from None


def _same(origin: Origin, found: Listed) -> None:
    """Raise FileChanged unless this is what was found."""
    told = _version(found)
    if found.size != origin.size or (told and told != origin.version):
        raise FileChanged(origin.place)


def _origin(address: str, found: Listed) -> Origin:
    return Origin(
        address=address,
        size=found.size,
        modified=found.modified,
        version=_version(found) or uuid.uuid4().hex,
    )


def _version(found: Listed) -> str:
    """Return what tells this content from others; empty where the server tells nothing."""
    dated = found.version != f"{found.size} {found.modified}" or found.modified != 0.0
    return found.version.strip('"') if dated else ""


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_fits(parts[at:], pattern[1:]) for at in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


def _asked(address: str, ask: Callable[[], Answer]) -> Answer:
    web = is_web(address)
    waits, hint = (WEB_WAITS, WEB_HINT) if web else (WAITS, HINT)
    return patiently(unsigned(address), ask, may_lack=True, waits=waits, hint=hint)


@lru_cache(CLIENTS)
def _client_at(root: str) -> "ObjectStore":
    if is_web(root):
        return client_of(root, plain=root.lower().startswith("http:"), tries=WEB_TRIES)
    check_variables()
    return client_of(root, plain=allows_http(), tries=INNER_TRIES)


def _client(address: str) -> tuple["ObjectStore", str]:
    """Return who is asked, and by what name."""
    if is_web(address):
        return _client_at(address), ""
    scheme, _, place = address.partition("://")
    bucket, _, name = place.partition("/")
    return _client_at(f"{scheme}://{bucket}"), name
