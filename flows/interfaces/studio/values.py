"""Turns values of named options, which the page sends, into the words of a command."""

import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from artifacts.disk.json_shapes import Json
from artifacts.errors import UsageError
from artifacts.options import Declared, OptionGroup, declared
from artifacts.remote.endpoints import SERVED, listed
from flows.commands.export.options import ExportConfig
from flows.core.options.commands import CaptionConfig
from flows.core.options.sources import SourceOptions
from flows.core.options.text import SCHEMA_BYTES
from flows.core.options.training import TuneConfig
from flows.core.options.vectors import SiftConfig
from flows.interfaces.studio.roots import Refused, Roots
from flows.outputs.record.recorded_command import COMMAND

# fmt: off
ALLOWED = frozenset((
    "sources", "recursive", "extensions", "limit", "min_age", "sift",
    "model", "revision", "today", "adapter", "language_gguf",
    "precision", "vision_backend", "vision_precision", "language_precision",
    "memory", "gpus", "batch_size", "prepare_workers", "retry_failed", "keep_frames",
    "check_media", "max_store", "features_as",
    "chunk", "shots", "chapters", "whole", "clip_frames", "clip_fps", "clip_rest",
    "fps", "frames", "max_frames", "max_pixels", "max_video_pixels",
    "deinterlace", "sound", "sound_track",
    "prompt", "prompts", "length", "summary", "summary_prompt",
    "questions", "question", "decisions", "keep",
    "engine", "slots", "max_new_tokens",
    "sampling", "temperature", "top_p", "top_k", "seed", "repetition_penalty",
    "presence_penalty", "no_repeat_ngram", "avoid", "system", "start_with", "retry_loops",
    "schema", "strip_think", "trigger", "prefix", "suffix",
    "out", "format", "beside", "clock", "existing", "media", "clip_sound", "trainer", "replace",
))
"""Options that the page may set. A new option is refused until it is named here."""
REPEATED = frozenset(("endpoint", "endpoint_keys", "insecure_endpoint"))
"""Options that only a recorded command brings with it: where media are sent, and secrets."""
DENIED = REPEATED | {"trust_remote_code", "trust_folder", "store", "overwrite"}
"""Options that it may not: they let foreign code run or files count, or are fixed at the start."""
# fmt: on
SERVER = "server"
"""Number of an address in PENSTOCK_ENDPOINTS. The page sends it, and never an address."""
OPTIONS = {d.name: d for d in declared(CaptionConfig)}
CONFIGS: dict[str, type[OptionGroup]] = {
    COMMAND: CaptionConfig,
    "sift": SiftConfig,
    "export": ExportConfig,
    "tune": TuneConfig,
}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
LONGEST = 1 << 16
"""Largest number of characters of a value."""
SIFT_FIELD = "Only media that meet"
"""Label of the page's field for --sift."""
MOST = 10_000
"""Largest number of members of a value, such as sources."""


def checked(values: Mapping[str, Json], roots: Roots) -> dict[str, Any]:
    """Return the values that the page sent, in the types of their options and with paths resolved.
    Raises Refused, EnvironmentFault."""
    options: dict[str, Any] = {}
    for name, value in values.items():
        if name == SERVER:
            options |= _server(value)
            continue
        if name not in ALLOWED or name not in OPTIONS:
            raise Refused(f"{name[:40]!r} cannot be set in the page", hint="Use the command line")
        if value is None or value == "" or value == [] or value == {}:
            continue
        options[name] = _typed(OPTIONS[name], value)
        if name in _CHECKS:
            options[name] = _CHECKS[name](options[name], roots)
    recursive = bool(options.get("recursive"))
    sources = options.get("sources", ())
    options["sources"] = tuple(str(roots.source(source, recursive=recursive)) for source in sources)
    return options


def words_of(
    values: Mapping[str, Any], fixed: Sequence[str] = (), command: str = COMMAND
) -> list[str]:
    """Return the words of the command that these values stand for, with the `fixed` ones. Raises
    UsageError as the command does."""
    config = CONFIGS[command]
    options = {d.name: d for d in declared(config)}
    built = config(**{name: _parsed(options[name], value) for name, value in values.items()})
    options_with_values = [(options[name], value) for name, value in values.items()]
    words = [
        word
        for d, value in options_with_values
        if not d.option.positional
        for word in d.words(value)
    ]
    if isinstance(built, SourceOptions):
        built.check_sources()
        return [command, *fixed, *words, "--", *values["sources"]]
    (first,) = (values[name] for name in values if options[name].option.positional)
    return [command, first, *fixed, *words]


def line_of(words: list[str]) -> str:
    """Return the words of a command as they are typed in a shell."""
    return shlex.join(["penstock", *words])


def _typed(option: Declared, value: Any) -> Any:
    """Return a JSON value as its option has it, except texts that the command parses. Raises
    Refused."""
    kind = str if option.option.parse and not option.option.repeated else option.kind
    fits: bool
    if kind in (bool, int):
        fits = type(value) is kind
    elif kind is float:
        fits = type(value) in (int, float)
    elif kind is dict:
        fits = isinstance(value, dict) and all(map(_is_text, (*value, *value.values())))
    elif kind is tuple:
        fits = isinstance(value, list) and all(map(_is_text, value))
        fits = fits and (option.option.positional or not any("," in text for text in value))
        value = tuple(value) if fits else None
    else:
        fits = _is_text(value)
    if not fits or (kind in (dict, tuple) and len(value) > MOST):
        raise Refused(f"invalid {option.flag}", hint=f"Give it as in --help: {_help(option)}")
    return value


def _is_text(value: Json) -> bool:
    if not isinstance(value, str) or len(value) > LONGEST or "\0" in value:
        return False
    return not any("\ud800" <= letter <= "\udfff" for letter in value)


def _parsed(option: Declared, value: Any) -> Any:
    parse = option.option.parse
    return parse(value) if parse is not None and not option.option.repeated else value


def _server(number: Json) -> dict[str, Json]:
    """Return the address of that number, which the owner of this machine listed. Raises
    Refused."""
    servers = listed()
    if type(number) is not int or not 0 <= number < len(servers):
        raise Refused("there is no such server", hint="Reload the page")
    server = servers[number]
    is_open = server.scheme == "http" and not server.is_local
    return {"endpoint": (server.url,), **({"insecure_endpoint": True} if is_open else {})}


def _path(value: str, roots: Roots) -> str:
    return str(roots.inside(value))


def model_name(value: str, roots: Roots) -> str:
    """Return a hub id, or the folder of a model below a root."""
    is_there = os.path.lexists(os.path.join(roots.folders[0], value)) and value != "demo"
    if is_there or value.startswith(("/", ".", "~")):
        return _path(value, roots)
    if value.startswith(SERVED):
        return value  # the command refuses it without a server
    if not HUB_ID.fullmatch(value):
        raise Refused(f"invalid --model {value[:80]!r}", hint="Give a folder, a hub id, or demo")
    return value


def _json(value: str, roots: Roots) -> str:
    """Return JSON as text, or the path of its file."""
    if value.lstrip().startswith("{"):
        if len(value) > SCHEMA_BYTES:
            raise UsageError("the JSON is too long", hint="Give a file")
        return value
    return _path(value, roots)


def _filter(value: str, _: Roots) -> str:
    """Return a condition on marks. An error names the page's field."""
    from flows.commands.sift.marks import parse_keep  # it loads numpy and pyarrow

    parse_keep(value, option=SIFT_FIELD)
    return value


_CHECKS: dict[str, Callable[[str, Roots], str]] = {
    **{name: _path for name, d in OPTIONS.items() if d.option.path and d.kind is str},
    "model": model_name,
    "schema": _json,
    "questions": _json,
    "sift": _filter,
}


def table() -> list[dict[str, Json]]:
    """Return the options that the page may set, for its form."""
    return [
        {
            "name": d.name,
            "flag": d.flag,
            "help": _help(d),
            "heading": d.option.heading or "other",
            "kind": "text" if d.option.parse and d.kind is not dict else d.kind.__name__,
            "values": [str(one) for one in d.option.values],
        }
        for d in OPTIONS.values()
        if d.name in ALLOWED
    ]


def _help(option: Declared) -> str:
    return option.option.help.replace("%(default)s", str(option.field.default))
