"""Parses JSON bodies. Every string in the result can be encoded as UTF-8."""

import json
from typing import Any

from flows.serving.refusals import HttpRefusal

LONE = "a string contains a lone surrogate, which is not valid Unicode"


def json_in(body: bytes) -> Any:
    """Parse the JSON of a body. Raises HttpRefusal."""
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_no_number)
        _check_texts(value)
        return value
    except UnicodeEncodeError as error:
        raise HttpRefusal(
            400, LONE, "Write characters above \\uffff as a pair of escapes"
        ) from error
    except (ValueError, RecursionError) as error:  # its message would quote bytes of the body
        raise HttpRefusal(400, "the body is not JSON in UTF-8", "Send a JSON object") from error


def _check_texts(value: Any) -> None:
    """Raise UnicodeEncodeError for a string that UTF-8 cannot encode."""
    if isinstance(value, str):
        if not value.isascii():
            value.encode()
    elif isinstance(value, list):
        for each in value:
            _check_texts(each)
    elif isinstance(value, dict):
        for name, each in value.items():
            _check_texts(name)
            _check_texts(each)


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")
