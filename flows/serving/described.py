"""What /openapi.json says of bodies and answers: fields, types, statuses and contents."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Any, Literal

from fastapi import FastAPI
from pydantic import Field, TypeAdapter

from flows.serving.chat import ChatCompletionRequest
from flows.serving.refusals import OPENAI

MEDIA_TYPES = (
    *("application/octet-stream", "image/jpeg", "image/png", "image/webp"),
    *("video/mp4", "video/webm"),
)
"""Types of uploads, without wildcards for client generators. Others work, too."""
COMPONENTS = "#/components/schemas/"
Count = Annotated[int, Field(ge=0)]
Kind, Ended = Literal["image", "video"], Literal["stop", "length"]
Finished = Literal["stop", "length", "tool_calls"]
BINARY = {"type": "string", "format": "binary"}
BOX = ([Count], None)
MEDIUM = {"kind": Kind, "model": str, "cached": bool, "seconds": float, "warnings?": [str]}
SIZED = {**MEDIUM, "width": Count, "height": Count, "key": str, "precision": str}
SCORE = {
    "label": str, "score": float, "passed": bool, "why": str, "box": BOX,
    "threshold": (float, None), "whole?": float,
}  # fmt: skip
LABELS = {"labels": [SCORE], "top": str}
SPAN = {"start": float, "end": float}
VECTOR = (str, [float])
HIT = {
    "rank": Count, "score": float, "id": str, "kind": Kind, "media_path": str,
    "time": ([float], None), "at": (float, None), "box": BOX, "copies": Count,
}  # fmt: skip
MODEL = {"id": str, "object": Literal["model"], "created": Count, "owned_by": str}
FUNCTION = {"name": str, "arguments": str}
CALL = {"id": str, "type": Literal["function"], "function": FUNCTION}
MESSAGE = {"role": Literal["assistant"], "content": (str, None), "tool_calls?": [CALL]}
CHOICE = {"index": Count, "message": MESSAGE, "finish_reason": Finished}
USAGE = {"prompt_tokens": Count, "completion_tokens": Count, "total_tokens": Count}
REFUSAL = {"error": str, "hint": str}
CHAT_REFUSAL = {
    "error": {"message": str, "type": str, "param": (str, None), "code": (str, None)}
}  # fmt: skip
ANSWERS: Mapping[str, Any] = {
    "/v1/label": {
        **SIZED, "labels?": [SCORE], "top?": str, "frames?": [{"time": float, **LABELS}],
        "spans?": [{**SPAN, "labels": [str]}],
    },
    "/v1/embed": {
        **SIZED, "dimensions": Count, "encoding": Literal["base64", "json"], "embedding": VECTOR,
        "embeddings?": [{"embedding": VECTOR, "time?": float, "box?": BOX}],
    },
    "/v1/caption": {
        **MEDIUM, "precision": dict[str, str],
        "captions": [{**SPAN, "caption": str, "tokens": Count, "ended": Ended, "heard?": bool}],
    },
    "/v1/search": {
        "hits": [HIT], "index": str, "rows": Count, "seconds": float, "warnings?": [str]
    },
    "/v1/chat/completions": {
        "id": str, "object": Literal["chat.completion"], "created": Count, "model": str,
        "choices": [CHOICE], "usage": USAGE, "warnings?": [str],
    },
    "/v1/models": {"object": Literal["list"], "data": [MODEL]},
    "/v1/models/{name}": MODEL,
    "/v1/info": {
        "version": str, "model": (str, None), "caption_model": (str, None), "labels": [str],
        "index": ({"folder": str, "rows": Count}, None), "token": bool,
        "limits": dict[str, float],
    },
    "/v1/stats": {
        "now": float, "points": [dict[str, float | None]], "halves": [dict[str, str | int]]
    },
    "/v1/session": {"status": Literal["ok"]},
    "/healthz": {"status": Literal["ok"]},
    "/readyz": {"ready": bool, "why": str},
}  # fmt: skip
"""Path → fields of its answer as JSON."""
OTHER = {"/metrics": "text/plain", "/v1/thumbnail/{hit}": "image/jpeg", "/v1/media/{hit}": "*/*"}
"""Path → type of an answer that is not JSON."""
STREAMED = ("/v1/caption", "/v1/chat/completions")
ALWAYS = (401, 403, 421, 431, 500, 501)
REFUSED = {
    "/v1/chat/completions": (404, 429, 503, 504),
    **{
        f"/v1/{name}": (404, 422, 429, 503, 504) for name in ("label", "embed", "caption", "search")
    },
    **{f"/v1/{name}": (404,) for name in ("models", "models/{name}")},
    **{f"/v1/{name}/{{hit}}": (404, 422, 503) for name in ("media", "thumbnail")},
    **{f"/v1/{name}": (422,) for name in ("info", "stats")},
    "/v1/session": (422, 429, 503),
}
"""Path → statuses of its own refusals, besides those of bodies."""


def _schema(kind: Any) -> dict[str, Any]:
    """Return the JSON schema of a type: fields by name, where `?` marks those that may be missing;
    a list of one type; a tuple of alternatives."""
    if isinstance(kind, dict):
        fields = {name.rstrip("?"): _schema(each) for name, each in kind.items()}
        needed = [name for name in kind if not name.endswith("?")]
        return {"type": "object", "required": needed, "properties": fields}
    if isinstance(kind, list):
        return {"type": "array", "items": _schema(kind[0])}
    if isinstance(kind, tuple):
        return {"anyOf": [_schema(each) for each in kind]}
    return TypeAdapter(kind).json_schema()


def _content(schema: Mapping[str, Any], *types: str) -> dict[str, Any]:
    return {kind: {"schema": schema} for kind in types or ("application/json",)}


def _body(description: str, content: Mapping[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "description": description, "content": content}}


MEDIUM_BODY = _body(
    "the bytes of an image or a clip", _content({**BINARY, "minLength": 1}, *MEDIA_TYPES)
)
CHAT_BODY = _body(
    "a chat completion request in OpenAI's form, with one image or clip in it",
    _content({"$ref": f"{COMPONENTS}ChatCompletionRequest"}),
)


class DescribedApp(FastAPI):
    """An application whose description holds every answer. Its handlers write answers without
    FastAPI."""

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document."""
        if self.openapi_schema is None:
            found = super().openapi()
            request = ChatCompletionRequest.model_json_schema(ref_template=COMPONENTS + "{model}")
            found["components"] = {"schemas": {**request.pop("$defs"), request["title"]: request}}
            for path, operations in found["paths"].items():
                for operation in operations.values():
                    operation["responses"] = _answers(path, operation.get("requestBody"))
        return super().openapi()


def _answers(path: str, body: Any) -> dict[str, Any]:
    """Return the answers of an operation by status."""
    is_chat = path.startswith(OPENAI)
    of_body = (408, 413, 400 if is_chat else 415) if body else ()
    statuses = {*ALWAYS, *REFUSED.get(path, ()), *of_body}
    content = _content(BINARY, OTHER[path]) if path in OTHER else _content(_schema(ANSWERS[path]))
    if path in STREAMED:
        content |= _content(_schema({"data": str}), "text/event-stream")  # of each event
    # The head is refused before its path is known.
    forms = {each: CHAT_REFUSAL if is_chat and each != 431 else REFUSAL for each in statuses}
    found = {each: _content(_schema(form)) for each, form in forms.items()}
    found[200] = content
    if path == "/readyz":
        found[503] = content
    if path == "/v1/media/{hit}":  # with the header Range
        found |= {206: content, 416: _content(_schema(REFUSAL))}
    return {
        str(status): {"description": HTTPStatus(status).phrase, "content": each}
        for status, each in sorted(found.items())
    }
