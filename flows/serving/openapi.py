"""Describes the request bodies of the routes for `/openapi.json`."""

from collections.abc import Mapping
from typing import Any

MEDIA_TYPES = (
    "application/octet-stream",
    "image/jpeg",
    "image/png",
    "image/webp",
    "video/mp4",
    "video/webm",
)
"""Types listed in /openapi.json, without wildcards for client generators. Others work, too."""
NUMBER, TEXT, TRUTH = {"type": "number"}, {"type": "string"}, {"type": "boolean"}
COUNT = {"type": "integer", "minimum": 1}
PROPERTIES: Mapping[str, Any] = {
    "messages": {"type": "array", "items": {"type": "object"}},
    "model": TEXT,
    "max_tokens": COUNT,
    "max_completion_tokens": COUNT,
    "temperature": {**NUMBER, "minimum": 0, "maximum": 2},
    "top_p": {**NUMBER, "minimum": 0, "maximum": 1},
    "seed": {"type": "integer", "minimum": 0},
    "presence_penalty": {**NUMBER, "minimum": -2, "maximum": 2},
    "stop": {"anyOf": [TEXT, {"type": "array", "items": TEXT, "maxItems": 4}]},
    "response_format": {"type": "object", "required": ["type"], "properties": {"type": TEXT}},
    "stream": TRUTH,
    "stream_options": {"type": "object", "properties": {"include_usage": TRUTH}},
}
"""The chat parameters that take effect."""


def _body(description: str, content: Mapping[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "description": description, "content": content}}


MEDIUM = _body(
    "the bytes of an image or a clip",
    {kind: {"schema": {"type": "string", "format": "binary"}} for kind in MEDIA_TYPES},
)
CHAT = _body(
    "a chat completion request in OpenAI's form, with one image or clip in it",
    {
        "application/json": {
            "schema": {"type": "object", "required": ["messages"], "properties": PROPERTIES}
        }
    },
)
