"""Reads the tokens that requests must send, and names the one of a request."""

import hashlib
import hmac
import re
from collections.abc import Mapping

from artifacts.disk.paths import text_named
from artifacts.errors import UsageError

Tokens = dict[str, str]
"""Name → secret. A secret without a name has an empty one. None: every request is admitted."""
TOKEN_BYTES = 1 << 16
SHORTEST_TOKEN = 16
"""Smallest number of characters of a token. Shorter ones can be guessed."""
NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
COOKIE = "penstock_session"


def read_tokens(path: str) -> Tokens:
    """Return the tokens of a file: one secret, or lines `NAME SECRET`. Raises UsageError, which
    shows no secret."""
    if not path:
        return {}
    text = text_named(path, "token-file", TOKEN_BYTES, "Give a file with a secret in it").strip()
    lines = [line.split() for line in text.split("\n") if line.strip()]
    if len(lines) == 1 and len(lines[0]) == 1:
        lines[0].insert(0, "")
    tokens = {line[0]: line[-1] for line in lines}
    named = all(len(line) == 2 and (NAME.fullmatch(line[0]) or not line[0]) for line in lines)
    if not named or len({*tokens.values()}) != len(lines):
        raise UsageError(
            f"--token-file {path}: not lines of a name and a secret, each once",
            hint="Write one secret, or on each line a name, a blank and its secret",
        )
    if not lines or any(len(t) < SHORTEST_TOKEN or not t.isascii() for t in tokens.values()):
        raise UsageError(
            f"--token-file {path}: the secret is too short, or not one ASCII word",
            hint=f"Put a secret of at least {SHORTEST_TOKEN} letters in it: openssl rand -hex 32",
        )
    return tokens


def session_of(token: str) -> str:
    """Return the session cookie that stands for a token."""
    return hashlib.sha256(b"penstock session " + token.encode()).hexdigest()


def sender_of(tokens: Tokens, headers: Mapping[str, str]) -> str | None:
    """Return the name of the token that a request brings; None: it brings none of these."""
    scheme, _, given = headers.get("authorization", "").partition(" ")
    brought = [given.encode("latin-1")] if scheme.lower() == "bearer" else []
    cookies = [c.strip() for c in headers.get("cookie", "").encode("latin-1").split(b";")]
    for name, token in tokens.items():
        session = f"{COOKIE}={session_of(token)}".encode()
        if any(hmac.compare_digest(one, token.encode()) for one in brought) or any(
            hmac.compare_digest(cookie, session) for cookie in cookies
        ):
            return name
    return None
