"""Reads a list of chat requests as JSON, and checks each with the types of the `openai` package:
no field that it does not know, and no value of another type. Prints how many it has checked.

It imports nothing else, so that it can run with any version of that package.
"""

import json
import sys
from typing import Any

from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
from pydantic import ConfigDict, TypeAdapter


def strict(kind: Any) -> Any:
    """The same type, in which unknown fields are errors."""
    kind.__pydantic_config__ = ConfigDict(extra="forbid")
    return kind


checked = TypeAdapter(strict(CompletionCreateParamsNonStreaming))
requests = json.load(sys.stdin)
for request in requests:
    # What the types call an iterable is checked while it is read.
    for message in checked.validate_python(request)["messages"]:
        if not isinstance(message["content"], str):
            list(message["content"])
print(len(requests))
