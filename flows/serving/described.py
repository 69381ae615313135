"""What /openapi.json says of requests and answers: fields, types, bounds, statuses and contents."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI

from flows.serving.chat_params import ChatCompletionRequest
from flows.serving.refusals import OPENAI

Schema = Mapping[str, Any]
MEDIA_TYPES = (
    "application/octet-stream",
    "image/jpeg",
    "image/png",
    "image/webp",
    "video/mp4",
    "video/webm",
)
"""Types of uploads, without wildcards for client generators. Others work, too."""
JSON = "application/json"
COMPONENTS = "#/components/schemas/"
TEXT: Schema = {"type": "string"}
TRUTH: Schema = {"type": "boolean"}
NUMBER: Schema = {"type": "number"}
COUNT: Schema = {"type": "integer", "minimum": 0}
BYTES: Schema = {"type": "string", "format": "binary"}


def _body(description: str, content: Schema) -> dict[str, Any]:
    return {"requestBody": {"required": True, "description": description, "content": content}}


CHAT_BODY = "ChatCompletionRequest"
MEDIUM_BODY = _body(
    "the bytes of an image or a clip",
    {kind: {"schema": {**BYTES, "minLength": 1}} for kind in MEDIA_TYPES},
)
CHAT = _body(
    "a chat completion request in OpenAI's form, with one image or clip in it",
    {JSON: {"schema": {"$ref": COMPONENTS + CHAT_BODY}}},
)


def _list(of: Schema) -> Schema:
    return {"type": "array", "items": of}


def _null(of: Schema) -> Schema:
    return {"anyOf": [of, {"type": "null"}]}


def _one(*values: str) -> Schema:
    return {"type": "string", "enum": [*values]}


def _map(of: Schema) -> Schema:
    return {"type": "object", "additionalProperties": of}


def _object(fields: Mapping[str, Schema], **others: Schema) -> Schema:
    """Return the schema of an object that has these fields, and may have the others."""
    return {"type": "object", "required": [*fields], "properties": {**fields, **others}}


BOX, WARNINGS, KIND = _null(_list(COUNT)), _list(TEXT), _one("image", "video")
MEDIUM = {"kind": KIND, "model": TEXT, "cached": TRUTH, "seconds": NUMBER}
SIZED = {**MEDIUM, "width": COUNT, "height": COUNT, "key": TEXT}
CAPTION = {"start": NUMBER, "end": NUMBER, "caption": TEXT, "tokens": COUNT}
SCORE = {"label": TEXT, "score": NUMBER, "passed": TRUTH, "why": TEXT, "box": BOX}
SCORED = _list(_object({**SCORE, "threshold": _null(NUMBER)}, whole=NUMBER))
VECTOR = {"anyOf": [TEXT, _list(NUMBER)]}
VECTORS = {"dimensions": COUNT, "encoding": _one("base64", "json"), "embedding": VECTOR}
HIT = {"rank": COUNT, "score": NUMBER, "id": TEXT, "kind": KIND, "media_path": TEXT}
MOMENT = {"time": _null(_list(NUMBER)), "at": _null(NUMBER), "box": BOX, "copies": COUNT}
CHAT_MODEL = _object({"id": TEXT, "object": _one("model"), "created": COUNT, "owned_by": TEXT})
CALL = {
    "id": TEXT,
    "type": _one("function"),
    "function": _object({"name": TEXT, "arguments": TEXT}),
}
MESSAGE = _object(
    {"role": _one("assistant"), "content": _null(TEXT)}, tool_calls=_list(_object(CALL))
)
CHOICE = {"index": COUNT, "message": MESSAGE, "finish_reason": _one("stop", "length")}
USAGE = {name: COUNT for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
COMPLETION = {"id": TEXT, "object": _one("chat.completion"), "created": COUNT, "model": TEXT}
SERVED = {"model": _null(TEXT), "caption_model": _null(TEXT), "labels": _list(TEXT)}
INDEX = {"index": _null(_object({"folder": TEXT, "rows": COUNT}))}
HALF = _map({"type": ["string", "integer"]})
HITS = _object(
    {"hits": _list(_object({**HIT, **MOMENT})), "index": TEXT, "rows": COUNT, "seconds": NUMBER},
    warnings=WARNINGS,
)
FRAMES = _list(_object({"time": NUMBER, "labels": SCORED, "top": TEXT}))
SPANS = _list(_object({"start": NUMBER, "end": NUMBER, "labels": _list(TEXT)}))
ANSWERS: Mapping[str, Schema] = {
    "/v1/label": _object(
        {**SIZED, "precision": TEXT},
        labels=SCORED,
        top=TEXT,
        frames=FRAMES,
        spans=SPANS,
        warnings=WARNINGS,
    ),
    "/v1/embed": _object(
        {**SIZED, **VECTORS, "precision": TEXT},
        embeddings=_list(_object({"embedding": VECTOR}, time=NUMBER, box=BOX)),
        warnings=WARNINGS,
    ),
    "/v1/caption": _object(
        {
            **MEDIUM,
            "precision": _map(TEXT),
            "captions": _list(_object({**CAPTION, "ended": _one("stop", "length")})),
        },
        warnings=WARNINGS,
    ),
    "/v1/search": HITS,
    "/v1/chat/completions": _object(
        {**COMPLETION, "choices": _list(_object(CHOICE)), "usage": _object(USAGE)},
        warnings=WARNINGS,
    ),
    "/v1/models": _object({"object": _one("list"), "data": _list(CHAT_MODEL)}),
    "/v1/models/{name}": CHAT_MODEL,
    "/v1/info": _object(
        {**SERVED, **INDEX, "version": TEXT, "plots": TRUTH, "token": TRUTH, "limits": _map(NUMBER)}
    ),
    "/v1/stats": _object(
        {"now": NUMBER, "points": _list(_map(_null(NUMBER))), "halves": _list(HALF)}
    ),
    "/v1/session": _object({"status": _one("ok")}),
    "/healthz": _object({"status": _one("ok")}),
    "/readyz": _object({"ready": TRUTH, "why": TEXT}),
}
"""Path → fields of its answer as JSON."""
CONTENTS: Mapping[str, Schema] = {
    "/metrics": {"text/plain": {"schema": TEXT}},
    "/v1/thumbnail/{hit}": {"image/jpeg": {"schema": BYTES}},
    "/v1/media/{hit}": {"*/*": {"schema": BYTES}},
}
"""Path → content of an answer that is not JSON."""
STREAMED = ("/v1/caption", "/v1/chat/completions")
REFUSAL = _object({"error": TEXT, "hint": TEXT})
CHAT_ERROR = {"message": TEXT, "type": TEXT, "param": _null(TEXT), "code": _null(TEXT)}
CHAT_REFUSAL = _object({"error": _object(CHAT_ERROR)})
STATUSES = {
    400: "the request is invalid, or asks for what is not supported",
    401: "the token is missing or wrong",
    403: "a page of another site asks",
    404: "this server does not have that",
    408: "the body arrives too slowly",
    413: "the medium exceeds a limit",
    415: "neither an image nor a video",
    421: "the Host is not this machine",
    422: "invalid parameters, or a damaged or empty medium",
    429: "too many requests wait",
    431: "the address or the header fields exceed 64 KiB",
    500: "an internal error",
    503: "not ready",
    504: "no answer in time",
}
"""Status of a refusal → its meaning."""
ALWAYS, UPLOAD = (401, 403, 421, 431, 500), (404, 408, 413, 415, 422, 429, 503, 504)
REFUSED: Mapping[str, Sequence[int]] = {
    "get /v1/models": (404,),
    "get /v1/models/{name}": (404,),
    "get /v1/search": (404, 422, 429, 503, 504),
    "get /v1/media/{hit}": (404, 503),
    "head /v1/media/{hit}": (404, 503),
    "get /v1/thumbnail/{hit}": (404, 503),
    "get /v1/stats": (422,),
    "post /v1/session": (429, 503),
    "post /v1/chat/completions": (400, 404, 408, 413, 429, 503, 504),
    **{f"post /v1/{name}": UPLOAD for name in ("label", "embed", "caption", "search")},
}
"""Operation → statuses of its own refusals."""


class DescribedApp(FastAPI):
    """An application whose description holds every answer. Its handlers read bodies and write
    answers themselves, so FastAPI does not know them."""

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document."""
        if self.openapi_schema is None:
            found = super().openapi()
            request = ChatCompletionRequest.model_json_schema(ref_template=COMPONENTS + "{model}")
            found["components"] = {"schemas": {**request.pop("$defs"), CHAT_BODY: request}}
            for path, operations in found["paths"].items():
                for method, operation in operations.items():
                    operation["responses"] = _answers(path, method)
        return super().openapi()


def _answer(description: str, schema: Schema) -> dict[str, Any]:
    return {"description": description, "content": {JSON: {"schema": schema}}}


def _answers(path: str, method: str) -> dict[str, Any]:
    """Return the answers of an operation by status."""
    content = CONTENTS.get(path) or {JSON: {"schema": ANSWERS[path]}}
    if path in STREAMED:
        content = {**content, "text/event-stream": {"schema": TEXT}}
    refusal = CHAT_REFUSAL if path.startswith(OPENAI) else REFUSAL
    refused = (*ALWAYS, *REFUSED.get(f"{method} {path}", ()))
    found = {
        # The head is refused before its path is known.
        str(each): _answer(STATUSES[each], REFUSAL if each == 431 else refusal)
        for each in refused
    }
    found["200"] = {"description": "the answer", "content": content}
    if path == "/readyz":
        found["503"] = {**found["200"], "description": STATUSES[503]}
    if path == "/v1/media/{hit}":
        text = {"text/plain": {"schema": TEXT}}
        found["206"] = {**found["200"], "description": "the part that Range names"}
        found |= {
            each: {"description": "invalid Range", "content": text} for each in ("400", "416")
        }
    return found
