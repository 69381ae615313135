"""Derives the parameter schemas of the Prefect flows from the commands' configurations, so that
Prefect refuses invalid values before a run.

Each flow takes one of the parameter types at the end of this file. A deployment may have stored
fields that its command no longer has. Such a field is accepted with its former default, and is
refused by name with any other value.
"""

import ast
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from itertools import pairwise
from pathlib import Path
from textwrap import dedent
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, with_config

from artifacts.errors import UsageError
from artifacts.options import Option, declared
from artifacts.paths import lies_in
from artifacts.store import open_store
from flows.job.prepare import out_folder
from flows.options.commands import CaptionConfig, MediaOptions
from flows.options.export_config import ExportConfig
from flows.options.media import VectorSamplingOptions
from flows.options.rebuild import RebuildConfig
from flows.options.text import FolderOptions
from flows.options.tune import TuneConfig
from flows.options.vectors import EmbedConfig, IndexConfig, LabelConfig

__all__ = [
    "CaptionConfig",
    "CaptionParameters",
    "EmbedParameters",
    "ExportConfig",
    "IndexParameters",
    "LabelConfig",
    "LabelParameters",
    "RebuildParameters",
    "TuneConfig",
]

FORMER: Mapping[str, Any] = {"as_published": False}
"""Field → the default that earlier versions recorded."""


def former_fields(kind: type[Any]) -> dict[str, list[Any]]:
    """Return the fields that earlier versions recorded of a command and that have no option of its
    own, each with the values that mean nothing was asked for."""
    own = {each.name for each in declared(kind)}
    found: dict[str, list[Any]] = {}
    for field in (*fields(CaptionConfig), *fields(VectorSamplingOptions)):
        if field.name not in own:
            default = field.default if field.default_factory is MISSING else field.default_factory()
            same = list(default) if isinstance(default, tuple) else default
            found[field.name] = [same, FORMER[field.name]] if field.name in FORMER else [same]
    return found


def docstrings(kind: type[Any]) -> dict[str, str]:
    """Return the docstring below each field of a configuration and of its groups."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        (body,) = ast.parse(dedent(inspect.getsource(base))).body
        for field, text in pairwise(body.body if isinstance(body, ast.ClassDef) else []):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                found[ast.unparse(field.target)] = inspect.cleandoc(ast.literal_eval(text.value))
    return found


def constrain(schema: dict[str, Any], option: Option) -> None:
    """Put into the schema of a field what its option's declaration allows."""
    place = schema.get("anyOf", [schema])[0]
    if option.values:
        place.get("items", place)["enum"] = list(option.values)
    bounds = {"exclusiveMinimum": option.above, "minimum": option.least, "maximum": option.most}
    place |= {name: bound for name, bound in bounds.items() if bound is not None}
    if option.not_empty:
        place["minLength"] = 1
    if option.text:
        place["pattern"] = option.text


def form_of(kind: type[Any]) -> ConfigDict:
    """Return settings of a configuration's form. It shows the options of the command, each with its
    text and its bounds; the schema of a server refuses every other field by name."""

    def change(schema: dict[str, Any]) -> None:
        properties, texts = schema["properties"], docstrings(kind)
        options = {each.name: each.option for each in declared(kind)}
        for name in [name for name in properties if name not in options]:
            del properties[name]
        for name, field in properties.items():
            field["description"] = texts[name]
            constrain(field, options[name])
        if "sources" in properties:
            properties["sources"]["minItems"] = 1
        if "validate" in properties:
            properties["validate"]["exclusiveMaximum"] = 1
        if issubclass(kind, MediaOptions):
            refuse_others(schema, former_fields(kind), COMMANDS[kind])

    return ConfigDict(extra="forbid", json_schema_extra=change)


def refuse_others(schema: dict[str, Any], former: Mapping[str, list[Any]], command: str) -> None:
    """Make the schema refuse fields that a command does not have. The server's refusal repeats the
    words under `not`: no other keyword puts words of ours into it."""
    known = "|".join([*schema["properties"], *former])
    refused: dict[str, Any] = {
        f"^(?!({known})$)": {"not": {"description": f"{command} does not have this field"}}
    }
    for name, values in former.items():
        other = {"description": f"{command} does not have {name}", "not": {"enum": values}}
        refused[f"^{name}$"] = {"not": other}
    schema["patternProperties"] = refused
    del schema["additionalProperties"]  # its refusal would list all patterns


def without_former(kind: type[Any]) -> Callable[[Any], Any]:
    """Return what takes former fields out of recorded parameters. It raises UsageError for a former
    field that asks for something."""
    former, command = former_fields(kind), COMMANDS[kind]

    def take(given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        asked = [n for n, v in given.items() if n in former and _plain(v) not in former[n]]
        if asked:
            raise UsageError(
                f"`penstock {command}` does not have {', '.join(f'`{name}`' for name in asked)}",
                hint=f"Leave out what is not among the options of `penstock {command} --help`",
            )
        return {name: value for name, value in given.items() if name not in former}

    return take


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


COMMANDS: Mapping[type[Any], str] = {
    CaptionConfig: "caption",
    RebuildConfig: "cache rebuild",
    EmbedConfig: "embed",
    IndexConfig: "index build",
    LabelConfig: "label",
    TuneConfig: "tune",
    ExportConfig: "export",
}
for _kind in COMMANDS:
    with_config(form_of(_kind))(_kind)
CaptionParameters = Annotated[CaptionConfig, BeforeValidator(without_former(CaptionConfig))]
RebuildParameters = Annotated[RebuildConfig, BeforeValidator(without_former(RebuildConfig))]
EmbedParameters = Annotated[EmbedConfig, BeforeValidator(without_former(EmbedConfig))]
IndexParameters = Annotated[IndexConfig, BeforeValidator(without_former(IndexConfig))]
LabelParameters = Annotated[LabelConfig, BeforeValidator(without_former(LabelConfig))]


VARIABLE = "PENSTOCK_OUT_ROOT"
"""Folders, with `:` between them; unset or empty: anywhere that the worker's user may."""
REMOTE_CODE = "PENSTOCK_ALLOW_REMOTE_CODE"
"""`1`: runs may set `trust_remote_code`; never where VARIABLE holds them to folders."""

WRITTEN: dict[str, Callable[[MediaOptions], Path]] = {
    "out": lambda config: out_folder(FolderOptions.of(config)),
    "store": lambda config: open_store(config.store_url).local,
}
"""Parameter → the folder that the run itself makes of it: another reading of the same text could be
led elsewhere."""


def confine(config: MediaOptions, *, out: bool = True) -> None:
    """Refuse parameters by which a flow run would write outside the worker's folders. Those are
    refused, too, that would run code that could; `out` is whether it uses that folder at all.
    Raises UsageError."""
    if config.trust_remote_code and os.environ.get(REMOTE_CODE) != "1":
        raise UsageError(
            "`trust_remote_code` is not allowed to runs of this worker",
            hint=f"Leave it out, run the plain command on that machine, or set {REMOTE_CODE}=1 in "
            "the worker's environment",
        )
    roots = [root for root in os.environ.get(VARIABLE, "").split(os.pathsep) if root]
    if not roots:
        return
    where = f"the folders of this worker ({VARIABLE})"
    for name in ("out", "store") if out else ("store",):
        # An empty store is the worker's own.
        if (name == "out" or config.store) and (path := outside(WRITTEN[name](config), roots)):
            raise UsageError(
                f"`{name}` leads to {path}, which is not in {where}",
                hint=f"Give a folder in {os.pathsep.join(roots)}",
            )
    for name in ("beside", "trust_remote_code"):
        if getattr(config, name, False):
            raise UsageError(
                f"`{name}` could write outside {where}",
                hint="Leave it out, or run the plain command on that machine",
            )


def outside(path: Path, roots: list[str]) -> str:
    """Return where a folder leads that is in none of the roots; nothing if all is well. The same
    holds for one that a run would make on the way there and that is in none, nor above one."""
    for step in (path, *(above for above in path.parents if not os.path.lexists(above))):
        inside = any(lies_in(str(step), root) for root in roots)
        above = step is not path and any(lies_in(root, str(step)) for root in roots)
        if not inside and not above:
            return os.path.realpath(step)
    return ""
