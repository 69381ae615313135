"""Writes requests in OpenAI's protocol, and reads the answers. Sends nothing."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from artifacts.endpoints import EndpointKeys
from stages.ask.job import AskItem, AskJob
from stages.decode.json_schema import follows

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control codes other than tab and line feed."""
BYTES_A_TOKEN = 4
"""Assumed bytes of a token, where a server does not count them."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A server's caption of one item, and the model and the fingerprint that it states."""

    text: str
    tokens: int
    ended: str
    model: str
    fingerprint: str


class BadAnswer(Exception):
    """An answer without a caption. `kind` is a word for programs; `again` says whether the same
    request may get another answer."""

    def __init__(self, kind: str, message: str, *, again: bool = False) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.again = again


def request_body(job: AskJob, item: AskItem, media: bytes) -> bytes:
    """Return the body of a request. `media` are parts of a message, as JSON without brackets."""
    fields: dict[str, Any] = {"model": job.model, "max_tokens": job.max_new_tokens, **job.sampling}
    if job.seed is not None:
        digest = hashlib.sha256(f"{job.seed} {item.key}".encode()).digest()
        fields["seed"] = int.from_bytes(digest[:4]) >> 1
    if job.schema:
        schema = {"name": "caption", "schema": json.loads(job.schema), "strict": True}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    system = json.dumps({"role": "system", "content": job.system}) + ", " if job.system else ""
    head = f'{json.dumps(fields)[:-1]}, "messages": [{system}{{"role": "user", "content": ['
    question = json.dumps({"type": "text", "text": item.prompt}).encode() if item.prompt else b""
    return head.encode() + b", ".join(filter(None, (media, question))) + b"]}]}"


def answer_in(body: bytes, schema: str, keys: EndpointKeys) -> Answer:
    """Return the answer in the body of a response. Raises BadAnswer."""
    try:
        value = json.loads(body.decode())
        choice = value["choices"][0]
        message, ended = choice["message"], choice.get("finish_reason")
        text = _text(message.get("content"))
        text.encode()
    except UnicodeEncodeError as error:
        raise BadAnswer("garbled", "the answer is no valid Unicode") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        why = f"the answer is no chat completion: {error_in(body, keys)}"
        raise BadAnswer("garbled", why, again=True) from error
    if ended == "content_filter" or (not text.strip() and message.get("refusal")):
        why = keys.cleaned(str(message.get("refusal") or "content filter"))
        raise BadAnswer("refused", f"the model refuses to answer: {why}")
    cut = " (it was cut at --max-new-tokens)" if ended == "length" else ""
    if not text.strip():
        raise BadAnswer("empty", f"the answer is empty{cut}")
    if any(key in text for key in keys.of.values()):
        raise BadAnswer("garbled", "the answer holds the key of the server")
    text = _unfenced(text) if schema else text
    if schema and not follows(schema, text):
        raise BadAnswer("schema", f"the answer does not follow the schema{cut}")
    usage = value.get("usage")
    count: Any = usage.get("completion_tokens") if isinstance(usage, Mapping) else None
    known = type(count) is int and 0 <= count < 1 << 31
    return Answer(
        text if schema else CONTROL.sub("", text).strip(),
        count if known else -(-len(text.encode()) // BYTES_A_TOKEN),
        "length" if ended == "length" else "stop",
        keys.cleaned(str(value.get("model") or "")),
        keys.cleaned(str(value.get("system_fingerprint") or "")),
    )


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(part["text"]) for part in content if part.get("type") == "text")
    if content is None or isinstance(content, str):
        return content or ""
    raise TypeError(type(content).__name__)


def _unfenced(text: str) -> str:
    """Return JSON without the one fence of Markdown around it, which small models write."""
    inner = text.strip()
    if not (inner.startswith("```") and inner.endswith("```")):
        return text
    return inner[3:-3].removeprefix("json").strip()


def error_in(body: bytes, keys: EndpointKeys) -> str:
    """Return what the body of an error says, in one line."""
    text = body.decode(errors="replace")
    try:
        found = json.loads(text)
        while isinstance(found, Mapping):
            found = next(found[n] for n in ("error", "message", "detail", "object") if n in found)
        text = found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
    except (ValueError, StopIteration, RecursionError):
        pass
    return keys.cleaned(text)
