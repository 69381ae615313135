"""Writes every JSON answer of the servers of `penstock serve`, the studio and the review."""

import json
import re
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

JSON = "application/json"
LONE = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair, as in a file's name that is not UTF-8."""


def json_bytes(value: Any) -> bytes:
    """Return a value as JSON in UTF-8. Letters that it cannot hold become replacement
    characters."""
    written = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        return written.encode()
    except UnicodeEncodeError:
        return LONE.sub("\ufffd", written).encode()


def json_answer(
    value: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a JSON response."""
    return Response(json_bytes(value), status, headers, media_type=JSON)
