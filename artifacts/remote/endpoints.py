"""Addresses of servers that run a model, and the keys of their hosts. Opens no connection."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from artifacts.disk.paths import text_named
from artifacts.errors import UsageError, redacted

SERVED = "openai:"
"""Begin of the name of a model that a server runs."""
LISTED = "PENSTOCK_ENDPOINTS"
"""Variable with the addresses that this machine may use, separated by commas or spaces."""
KEY = "PENSTOCK_ENDPOINT_KEY"
"""Variable with the key of the one host in LISTED."""
VISIBLE = re.compile(r"[!-~]{1,4096}")
"""An address, or a key as a header can hold it."""
KEYS_BYTES = 1 << 16
SHOWN_LETTERS = 300
"""Maximum characters of a server's text that are shown or stored."""
HINT = "Give an address such as http://127.0.0.1:11434/v1, without user, password or parameters"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The address of a server that speaks OpenAI's protocol. `path` is that of the API, `/v1`."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def netloc(self) -> str:
        return f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def origin(self) -> str:
        return f"{self.scheme}://{self.netloc}"

    @property
    def url(self) -> str:
        return f"{self.origin}{self.path}"

    @property
    def is_local(self) -> bool:
        """Return whether the address is of this machine."""
        return is_this_machine(self.host)


def is_this_machine(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def endpoint_of(text: str, *, insecure: bool = False) -> Endpoint:
    """Parse an address. `insecure` allows http to other machines. Raises UsageError."""
    shown = redacted(text.partition("?")[0])[:80] if text.isprintable() else "with a control code"
    try:
        parts = urlsplit(text)
        scheme, host, port = parts.scheme.lower(), (parts.hostname or "").lower(), parts.port
    except ValueError:
        scheme, host, port = "", "", None
    if scheme not in ("http", "https") or not host or not VISIBLE.fullmatch(text):
        raise UsageError(f"--endpoint {shown}: not an address of http or https", hint=HINT)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UsageError(
            f"--endpoint {shown}: it holds more than scheme, host, port and path",
            hint="Name a key with --endpoint-keys FILE, in a line `host = key`",
        )
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    usual = 443 if scheme == "https" else 80
    endpoint = Endpoint(scheme, host, usual if port is None else port, path)
    if scheme == "http" and not endpoint.is_local and not insecure:
        raise UsageError(
            f"--endpoint {endpoint.url}: http to another machine is not encrypted",
            hint="Use https, or add --insecure-endpoint in a network that you trust",
        )
    return endpoint


def endpoints_of(given: Iterable[str], *, insecure: bool = False) -> list[Endpoint]:
    """Parse addresses, each once. Raises UsageError."""
    return list(dict.fromkeys(endpoint_of(address, insecure=insecure) for address in given))


def listed() -> list[Endpoint]:
    """Return the addresses that PENSTOCK_ENDPOINTS lists. Raises UsageError."""
    return endpoints_of(os.environ.get(LISTED, "").replace(",", " ").split(), insecure=True)


def refuse_unlisted(given: Sequence[str]) -> None:
    """Raise UsageError for an address that PENSTOCK_ENDPOINTS does not list."""
    for endpoint in endpoints_of(given, insecure=True):
        if endpoint not in listed():
            raise UsageError(
                f"`endpoint` {endpoint.url} is not allowed on this worker",
                hint=f"The owner of the machine can add it to {LISTED} in its environment",
            )


@dataclass(frozen=True, slots=True)
class EndpointKeys:
    """Keys by host, or by host and port."""

    of: Mapping[str, str] = field(repr=False)

    def key(self, endpoint: Endpoint) -> str:
        """Return the key of an address; empty: none."""
        return self.of.get(endpoint.netloc) or self.of.get(endpoint.host, "")

    def cleaned(self, text: str) -> str:
        """Return a server's text for display and records: without keys and control characters, and
        cut."""
        for key in sorted(self.of.values(), key=len, reverse=True):
            text = text.replace(key, "…")
        text = "".join(letter if letter.isprintable() else " " for letter in text[: 1 << 14])
        text = redacted(" ".join(text.split()))
        return text if len(text) <= SHOWN_LETTERS else f"{text[:SHOWN_LETTERS]}…"


def keys_from(file: str) -> EndpointKeys:
    """Return the keys of a file, or without one that of the environment. Raises UsageError, whose
    text has no key."""
    if file:
        return EndpointKeys(_read(Path(file).expanduser()))
    if not (key := os.environ.get(KEY, "")):
        return EndpointKeys({})
    hosts = {endpoint.host for endpoint in listed()}
    if len(hosts) != 1 or not VISIBLE.fullmatch(key):
        raise UsageError(
            f"{KEY} must hold one key, of the one host that {LISTED} names ({len(hosts)} here)",
            hint="Use --endpoint-keys FILE, with a line `host = key` for each host",
        )
    return EndpointKeys({hosts.pop(): key})


def _read(path: Path) -> dict[str, str]:
    text = text_named(path, "endpoint-keys", KEYS_BYTES, "Write lines `host = key`")
    if path.stat().st_mode & 0o077:
        raise UsageError(
            f"--endpoint-keys {path}: other users of this machine may read it",
            hint=f"Run: chmod 600 {path}",
        )
    keys: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        host, _, key = (part.strip() for part in line.partition("="))
        if not host or host.startswith("#"):
            continue
        if "/" in host or not VISIBLE.fullmatch(key):
            raise UsageError(
                f"--endpoint-keys {path}, line {number}: not of the form `host = key`",
                hint="Write the host of the address alone, or host:port, then = and its key",
            )
        keys[host.lower()] = key
    return keys
