"""Tells addresses from paths, and redacts addresses for display. Opens no connection."""

import glob
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import unquote

from artifacts.digests import digest_of

BUCKETS = ("s3", "gs", "az")
WEB = ("http", "https")
SIGNATURE = re.compile(
    r"(?:x-(?:amz|goog|oss|cos)-.*|q-.*|(?:x-oss-|x-cos-)?signature|expires|policy|key-pair-id"
    r"|(?:aws|oss)?accesskeyid|googleaccessid|sig|se|sp|sv|sr|st|spr|sip|skoid|sktid|skt|ske|sks|skv"
    r"|.*token.*|.*auth.*|.*secret.*|.*password.*|api_?key|jwt|hdn(?:ts|ea))=",
    re.IGNORECASE,
)
"""Begin of a parameter by which an address lets its reader in, for a while or for ever: those of
the services, and what is usual elsewhere."""
ONCE = "once-"
"""Begin of a version that was made up, for what tells none."""
NAME_LETTERS = 120
"""Most letters of the name of a copy, from its end: a file's name has 255 bytes at the most."""


def is_address(text: str) -> bool:
    """Tell whether a source is an address of a bucket or of the web, and no path."""
    return text.partition("://")[0].lower() in (*BUCKETS, *WEB) and "://" in text


def is_web(address: str) -> bool:
    """Tell whether an address is of the web, where nothing can be listed."""
    return address.partition("://")[0].lower() in WEB


def is_object(text: str) -> bool:
    """Tell whether a source is the address of one object, as far as it shows."""
    return (
        is_address(text) and not names_folder(text) and (is_web(text) or not glob.has_magic(text))
    )


def names_folder(address: str) -> bool:
    """Tell whether an address of a bucket is spelt as a folder's, or names the bucket alone."""
    place = address.partition("://")[2]
    return not is_web(address) and ("/" not in place or place.endswith("/"))


def unsigned(address: str) -> str:
    """Return an address as it may be shown and kept: without what lets its reader in."""
    scheme, mark, place = address.partition("://")
    if not is_web(address):
        return f"{scheme.lower()}{mark}{place}"
    before, _, query = address.partition("#")[0].partition("?")
    rest = before.partition("://")[2]
    host, slash, path = rest.partition("/")
    unsigned_query = "&".join(
        part for part in query.split("&") if part and not SIGNATURE.match(part)
    )
    shown = f"{scheme.lower()}://{host.rpartition('@')[2]}{slash}{path}"
    return f"{shown}?{unsigned_query}" if unsigned_query else shown


def signed(text: str) -> bool:
    """Tell whether a text is an address with something in it that lets its reader in."""
    return is_address(text) and len(unsigned(text)) < len(text.partition("#")[0])


def name_in(address: str) -> str:
    """Return the name of the file at an address, by the last part of its path."""
    path = unsigned(address).partition("://")[2]
    if is_web(address):
        path = unquote(path.partition("?")[0].partition("/")[2])
    name = re.sub(r"[\x00-\x1f\x7f/]", "_", PurePosixPath(path).name)[-NAME_LETTERS:]
    return name.lstrip(".") or "file"


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteFile:
    """One remote object with the version that it had when it was found."""

    address: str
    """Where it is asked for, with what lets its reader in."""
    size: int
    """Bytes."""
    version: str
    """Word that changes whenever the content does. A new one for each response that has none."""

    @property
    def key(self) -> str:
        """Return what names this version of what lies there, in 64 hex digits."""
        return digest_of([self.place, self.version])

    @property
    def lasts(self) -> bool:
        """Return whether the version will tell the same content from others another time."""
        return not self.version.startswith(ONCE)

    @property
    def place(self) -> str:
        """Return the address as it may be shown and kept."""
        return unsigned(self.address)

    @property
    def name(self) -> str:
        return name_in(self.address)
