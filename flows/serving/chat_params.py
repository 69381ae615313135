"""Parses the parameters of a chat request. Some take effect. Some are accepted only with the value
that changes nothing. All others are refused.
"""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from artifacts.errors import UsageError
from flows.serving.caption_params import CaptionParams
from flows.serving.refusals import HttpRefusal, invalid, unsupported
from stages.decode.generation import SamplingParams
from stages.decode.json_schema import canonical, rest_of

MAX_STOPS, STOP_LETTERS = 4, 1000
SCHEMA_LETTERS = 64 << 10
LARGEST_SEED = (1 << 63) - 1
MAX_TEMPERATURE = 2.0
MAX_PRESENCE = 2.0
"""Largest absolute value of `presence_penalty`."""
MIN_TEMPERATURE = 1e-3
"""Temperatures below this decode greedily, as 0 does; the logits would overflow."""
MIN_TOP_P = 1e-6
"""Values of `top_p` below this decode greedily, as 0 does."""
SUPPORTED = frozenset(
    {
        "messages", "model", "stream", "stream_options", "max_tokens", "max_completion_tokens",
        "temperature", "top_p", "seed", "presence_penalty", "stop", "response_format",
    }
)  # fmt: skip
IGNORED = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key"})
"""Parameters about the client. They do not affect the answer."""
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "frequency_penalty": (0,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "store": (False,),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
}
"""Parameter → accepted values, which change nothing; `null` is also accepted."""


def check_known(request: Mapping[str, Any], models: Collection[str]) -> None:
    """Raise HttpRefusal for an unsupported parameter, and for an unknown model."""
    for name, value in request.items():
        if value is None or name in SUPPORTED | IGNORED:
            continue
        if name not in NEUTRAL:
            raise unsupported(name, f"the parameter {name[:80]!r} is not supported")
        if not any(type(value) is type(each) and value == each for each in _as(NEUTRAL[name])):
            raise unsupported(name, f"{name} {_shown(value)} is not supported")
    model = request.get("model")
    if model is not None and not isinstance(model, str):
        raise invalid("model", "model is not a string", "Give the name from GET /v1/models")
    if model is not None and model not in models:
        raise no_model(model)


def no_model(name: str) -> HttpRefusal:
    """Return the refusal of an unknown model."""
    error = f"the model {name[:80]!r} is not served"
    hint = "GET /v1/models lists the model"
    return HttpRefusal(404, error, hint, code="model_not_found", param="model")


def params_in(request: Mapping[str, Any], limit: int) -> CaptionParams:
    """Parse the caption parameters of a chat request. `limit` is the server's token limit of one
    caption. Compiling a schema takes a moment. Raises HttpRefusal."""
    max_tokens = _limit(request)
    schema = _schema(request.get("response_format"))
    if schema and min(max_tokens or limit, limit) < (needed := rest_of(schema).tokens):
        if needed <= limit:
            hint = f"Set max_tokens to at least {needed}"
            raise invalid("max_tokens", f"the schema needs up to {needed} tokens", hint)
        error = f"its answers need up to {needed} tokens; this server's limit is {limit}"
        raise unsupported("response_format", error, "Request a smaller schema")
    return CaptionParams(
        generation=_generation(request, schema),
        max_tokens=max_tokens,
        stop=_stop(request.get("stop")),
        counts_prompt=True,
    )


def streaming_in(request: Mapping[str, Any]) -> tuple[bool, bool]:
    """Return whether the answer is streamed, and whether the stream reports its usage. Raises
    HttpRefusal."""
    streamed, options = request.get("stream"), request.get("stream_options")
    if not isinstance(streamed, bool | None):
        raise invalid("stream", f"stream is {_shown(streamed)}", "Give true or false")
    if options is None:
        return bool(streamed), False
    if not streamed:
        raise invalid("stream_options", "stream_options require a stream", "Add stream: true")
    if not isinstance(options, dict):
        raise invalid("stream_options", "stream_options is not an object", "Give include_usage")
    for name, value in options.items():
        if name not in ("include_usage", "include_obfuscation") or not isinstance(
            value, bool | None
        ):
            raise unsupported("stream_options", f"stream_options.{name[:80]} is not supported")
    if options.get("include_obfuscation"):
        raise unsupported("stream_options", "obfuscation of chunks is not supported")
    return True, bool(options.get("include_usage"))


def _limit(request: Mapping[str, Any]) -> int | None:
    """Return the token limit of the answer: the smaller value of both names."""
    found = []
    for name in ("max_tokens", "max_completion_tokens"):
        value = request.get(name)
        if value is None:
            continue
        if type(value) is not int or value < 1:
            raise invalid(name, f"{name} is {_shown(value)}", "Give a whole number from 1")
        found.append(value)
    return min(found, default=None)


def _generation(request: Mapping[str, Any], schema: str) -> SamplingParams:
    temperature = _number(request, "temperature", MAX_TEMPERATURE)
    top_p = _number(request, "top_p", 1.0)
    presence = _number(request, "presence_penalty", MAX_PRESENCE, low=-MAX_PRESENCE) or None
    seed = request.get("seed")
    if seed is not None and (type(seed) is not int or not 0 <= seed <= LARGEST_SEED):
        raise invalid("seed", f"seed is {_shown(seed)}", "Give a whole number from 0 to 2^63 - 1")
    share = None if top_p == 1.0 else top_p
    is_default = temperature is None and share is None
    cold = temperature is not None and temperature < MIN_TEMPERATURE
    narrow = share is not None and share < MIN_TOP_P
    greedy = SamplingParams(presence_penalty=presence, schema=schema)
    if is_default or cold or narrow:
        return greedy
    try:
        return replace(greedy, temperature=temperature, top_p=share, seed=seed or 0)
    except UsageError as error:
        options = {f"--{name.replace('_', '-')}": name for name in ("temperature", "top_p", "seed")}
        param = next((options[each] for each in options if each in error.message), "messages")
        message = error.message.replace(f"--{param.replace('_', '-')}", param)
        raise invalid(param, message, error.hint) from error


def _number(request: Mapping[str, Any], name: str, high: float, low: float = 0) -> float | None:
    value = request.get(name)
    if value is None:
        return None
    if type(value) not in (int, float) or not low <= value <= high:
        hint = f"Give a number from {low:g} to {high:g}"
        raise invalid(name, f"{name} is {_shown(value)}", hint)
    return float(value)


def _stop(value: Any) -> tuple[str, ...]:
    given = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(given, list) or not all(isinstance(each, str) for each in given):
        raise invalid(
            "stop", "stop is neither a string nor a list of strings", 'Give "." or [".", ";"]'
        )
    if len(given) > MAX_STOPS:
        raise invalid("stop", f"stop has {len(given)} strings", f"Give at most {MAX_STOPS}")
    if any(not 0 < len(each) <= STOP_LETTERS for each in given):
        raise invalid(
            "stop",
            "a stop string is empty or too long",
            f"Give 1 to {STOP_LETTERS} characters",
        )
    return tuple(sorted(set(given)))


def _schema(form: Any) -> str:
    """Return the canonical text of the requested schema; empty: no schema. Raises HttpRefusal."""
    if form is None:
        return ""
    if not isinstance(form, dict) or not isinstance(form.get("type"), str):
        raise invalid("response_format", "response_format has no type", 'Give {"type": "text"}')
    if (kind := form["type"]) not in _FORMS:
        raise unsupported(
            "response_format",
            f"response_format {kind[:80]!r} is not supported",
            "Use text, or json_schema",
        )
    return _FORMS[kind](form)


def _of_schema(form: Mapping[str, Any]) -> str:
    given = form.get("json_schema")
    schema = given.get("schema") if isinstance(given, dict) else None
    if not isinstance(schema, dict):
        raise invalid(
            "response_format",
            "json_schema has no schema",
            'Give {"type": "json_schema", "json_schema": {"name": "…", "schema": {…}}}',
        )
    text = json.dumps(schema, ensure_ascii=False)
    if len(text) > SCHEMA_LETTERS:
        raise unsupported(
            "response_format",
            f"its schema has {len(text):,} characters",
            f"Send at most {SCHEMA_LETTERS:,}",
        )
    try:
        return canonical(text)
    except UsageError as error:
        message = error.message.replace("--schema", "the schema")
        raise unsupported("response_format", message, error.hint) from error


_FORMS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "text": lambda form: "",
    "json_schema": _of_schema,
}


def _as(values: tuple[Any, ...]) -> list[Any]:
    """Return the values with a float twin of each integer, since JSON may write 0 as 0.0."""
    return [*values, *(float(each) for each in values if type(each) is int)]


def _shown(value: Any) -> str:
    """Return a value as JSON for an error message, cut at 80 characters."""
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
