"""Parses the parameters of a chat request. Some are honoured; some are accepted only with the value
that changes nothing; all others are refused.
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

MOST_STOPS, STOP_LETTERS = 4, 1000
SCHEMA_LETTERS = 64 << 10
LARGEST_SEED = (1 << 63) - 1
HOTTEST = 2.0
MOST_PRESENCE = 2.0
"""Largest `presence_penalty`, and least with its sign turned."""
COLDEST = 1e-3
"""Temperature below which the likeliest word is taken, as at 0: its logits would overflow."""
NARROWEST = 1e-6
"""Value of `top_p` below which only the likeliest word is left to choose from, as at 0."""
HONOURED = frozenset(
    {
        "messages", "model", "stream", "stream_options", "max_tokens", "max_completion_tokens",
        "temperature", "top_p", "seed", "presence_penalty", "stop", "response_format",
    }
)  # fmt: skip
ANYTHING = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key"})
"""Parameters that are about who asks and not about the answer."""
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
"""Parameter → its values that change nothing; `null` is one of each."""


def check_known(asked: Mapping[str, Any], models: Collection[str]) -> None:
    """Raise Refused for a parameter that cannot be followed, and for a model that is not served."""
    for name, value in asked.items():
        if value is None or name in HONOURED | ANYTHING:
            continue
        if name not in NEUTRAL:
            raise unsupported(name, f"the parameter {name[:80]!r} is not supported")
        if not any(type(value) is type(each) and value == each for each in _as(NEUTRAL[name])):
            raise unsupported(name, f"{name} {_shown(value)} is not supported")
    model = asked.get("model")
    if model is not None and not isinstance(model, str):
        raise invalid("model", "model is no text", "Give the name that GET /v1/models says")
    if model is not None and model not in models:
        raise no_model(model)


def no_model(name: str) -> HttpRefusal:
    """Return the refusal of a request to a model that is not served."""
    error = f"the model {name[:80]!r} is not served"
    hint = "GET /v1/models says which is"
    return HttpRefusal(404, error, hint, code="model_not_found", param="model")


def params_in(asked: Mapping[str, Any], limit: int) -> CaptionParams:
    """Return what a chat request asks of its captions, on a server that gives each at most `limit`
    tokens. To compile a schema takes a moment. Raises Refused."""
    most = _limit(asked)
    schema = _schema(asked.get("response_format"))
    if schema and min(most or limit, limit) < (needed := rest_of(schema).tokens):
        if needed <= limit:
            raise invalid("max_tokens", f"the schema takes up to {needed} tokens", "Give as many")
        error = f"its answers take up to {needed} tokens, and this server gives {limit}"
        raise unsupported("response_format", error, "Ask for less at once")
    return CaptionParams(
        generation=_generation(asked, schema),
        max_tokens=most,
        stop=_stop(asked.get("stop")),
        counts_prompt=True,
    )


def streaming_in(asked: Mapping[str, Any]) -> tuple[bool, bool]:
    """Return whether an answer is streamed, and whether its usage is told then. Raises Refused."""
    streamed, options = asked.get("stream"), asked.get("stream_options")
    if not isinstance(streamed, bool | None):
        raise invalid("stream", f"stream is {_shown(streamed)}", "Give true or false")
    if options is None:
        return bool(streamed), False
    if not streamed:
        raise invalid("stream_options", "stream_options go with a stream alone", "Add stream: true")
    if not isinstance(options, dict):
        raise invalid("stream_options", "stream_options are no object", "Give include_usage")
    for name, value in options.items():
        if name not in ("include_usage", "include_obfuscation") or not isinstance(
            value, bool | None
        ):
            raise unsupported("stream_options", f"stream_options.{name[:80]} is not supported")
    if options.get("include_obfuscation"):
        raise unsupported("stream_options", "chunks are sent as they are, without obfuscation")
    return True, bool(options.get("include_usage"))


def _limit(asked: Mapping[str, Any]) -> int | None:
    """Return the most tokens of an answer; of both names the smaller."""
    found = []
    for name in ("max_tokens", "max_completion_tokens"):
        value = asked.get(name)
        if value is None:
            continue
        if type(value) is not int or value < 1:
            raise invalid(name, f"{name} is {_shown(value)}", "Give a whole number from 1")
        found.append(value)
    return min(found, default=None)


def _generation(asked: Mapping[str, Any], schema: str) -> SamplingParams:
    temperature = _number(asked, "temperature", HOTTEST)
    top_p = _number(asked, "top_p", 1.0)
    presence = _number(asked, "presence_penalty", MOST_PRESENCE, least=-MOST_PRESENCE) or None
    seed = asked.get("seed")
    if seed is not None and (type(seed) is not int or not 0 <= seed <= LARGEST_SEED):
        raise invalid("seed", f"seed is {_shown(seed)}", "Give a whole number from 0 to 2^63 - 1")
    share = None if top_p == 1.0 else top_p
    likeliest = temperature is None and share is None
    cold = temperature is not None and temperature < COLDEST
    narrow = share is not None and share < NARROWEST
    greedy = SamplingParams(presence_penalty=presence, schema=schema)
    if likeliest or cold or narrow:
        return greedy
    try:
        return replace(greedy, temperature=temperature, top_p=share, seed=seed or 0)
    except UsageError as error:
        options = {f"--{name.replace('_', '-')}": name for name in ("temperature", "top_p", "seed")}
        param = next((options[each] for each in options if each in error.message), "messages")
        message = error.message.replace(f"--{param.replace('_', '-')}", param)
        raise invalid(param, message, error.hint) from error


def _number(asked: Mapping[str, Any], name: str, most: float, least: float = 0) -> float | None:
    value = asked.get(name)
    if value is None:
        return None
    if type(value) not in (int, float) or not least <= value <= most:
        hint = f"Give a number from {least:g} to {most:g}"
        raise invalid(name, f"{name} is {_shown(value)}", hint)
    return float(value)


def _stop(value: Any) -> tuple[str, ...]:
    given = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(given, list) or not all(isinstance(each, str) for each in given):
        raise invalid(
            "stop", "stop is neither a text nor a list of texts", 'Give "." or [".", ";"]'
        )
    if len(given) > MOST_STOPS:
        raise invalid("stop", f"stop has {len(given)} texts", f"Give at most {MOST_STOPS}")
    if any(not 0 < len(each) <= STOP_LETTERS for each in given):
        raise invalid(
            "stop", "a stop text is empty or too long", f"Give 1 to {STOP_LETTERS} letters"
        )
    return tuple(sorted(set(given)))


def _schema(form: Any) -> str:
    """Return the canonical text of the schema that is asked for; empty: none. Raises Refused."""
    if form is None:
        return ""
    if not isinstance(form, dict) or not isinstance(form.get("type"), str):
        raise invalid("response_format", "response_format has no type", 'Give {"type": "text"}')
    if (kind := form["type"]) not in _FORMS:
        raise unsupported(
            "response_format",
            f"response_format {kind[:80]!r} is not supported",
            "Use text, or json_schema with the form of the object",
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
            f"its schema has {len(text):,} letters",
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
    """Return values as JSON may write them: 0 is 0.0, too."""
    return [*values, *(float(each) for each in values if type(each) is int)]


def _shown(value: Any) -> str:
    """Return a value as a refusal shows it."""
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
