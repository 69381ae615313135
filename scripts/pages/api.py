"""Writes docs/api.md, the list of what is public: `python -m scripts.pages.api`.

Names and signatures come from the source, routes from the applications of the servers, and fields
from what commands print and write for clips of the demo. Fields are those of a run on a CPU.
"""

import argparse
import ast
import contextlib
import importlib
import inspect
import io
import json
import os
import re
import shutil
import tempfile
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast, is_typeddict
from unittest.mock import patch

from starlette.routing import Route

import penstock
import penstock_demo
from artifacts import errors
from artifacts.digests import digest_of
from flows.commands.shared.parser import parser
from flows.interfaces.cli.main import main as run_command
from flows.interfaces.serve.app import ANSWERS, app_of
from flows.interfaces.serve.chat import ChatCompletionRequest
from flows.interfaces.studio.server import studio_app

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "api.md"
PACKAGES = ("penstock", "flows", "stages", "artifacts", "penstock_demo")
OPEN = re.compile(
    r"\b(arithmetic|budget|counts|decided_by|devices|edited|gpus|halves|items|mounts|notes|outputs"
    r"|precision|sampling|seconds|timeline|together|versions|what_fits(_gpu)?(\.\*)?)$"
)
"""Objects whose keys depend on the run, such as names of stages and files."""
COMMANDS = (
    "plan media --model demo",
    "caption media --model demo --summary --out run",
    "status run",
    "embed media --model demo --out vectors",
    "label media --model demo --labels ball,box --threshold -1 --out labels",
    "sift media --out marks",
    "index build media --model demo --out found",
    "index stats --index found",
    "search ball --index found",
    "cache ls",
    "cache rebuild media --model demo",
)
FOLDERS = ("run", "vectors", "labels", "marks", "found")
EACH_RUN = "each run with --json"
SHOWN = ("__call__", "__iter__", "__next__", "__enter__")
"""Special methods that users rely on."""
VARIABLE = re.compile(r"PENSTOCK_[A-Z_]+")
HEAD = """# What is public

This page lists the names that programs and scripts may rely on.
`python -m scripts.pages.api` writes it from the program, and a test compares the two. A change of
it has a line in the [changelog](../CHANGELOG.md), which names the new list. What is not listed may
change without notice. The [reference](reference.md) has the docstrings of the Python package, and
`penstock COMMAND --help` says what each option does."""


def blocks(lines: Iterable[str]) -> str:
    """Return lines as a block of code."""
    return "\n".join(["```text", *lines, "```"])


def table(header: str, rows: Iterable[Iterable[str]]) -> str:
    """Return a table of Markdown."""
    lines = [header, re.sub(r"[^|]+", "---", header)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def names(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


# ------------------------------------------------------------------ the Python package


def annotation(node: ast.expr) -> str:
    is_quoted = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return str(ast.literal_eval(node)) if is_quoted else ast.unparse(node)


def signature(function: ast.FunctionDef) -> str:
    """Return a function as its own source declares it, whatever the version of Python."""
    taken = re.sub(r"^(self|cls)(, )?", "", ast.unparse(function.args))
    gives = f" -> {annotation(function.returns)}" if function.returns else ""
    return f"{function.name}({taken}){gives}"


def tree_of(thing: Any) -> Any:
    return ast.parse(textwrap.dedent(inspect.getsource(thing))).body[0]


def is_ours(kind: Any) -> bool:
    return inspect.isclass(kind) and kind.__module__.partition(".")[0] in PACKAGES


def members(kind: type) -> list[str]:
    """Return fields, properties and methods of a class, inherited ones of our classes included."""
    declared: dict[str, str] = {}
    for base in [kind] if is_typeddict(kind) else reversed(kind.__mro__):
        if is_ours(base):
            declared |= {name: text for node in tree_of(base).body for name, text in member(node)}
    return [text for name, text in declared.items() if not name.startswith("_") or name in SHOWN]


def member(node: ast.stmt) -> Iterator[tuple[str, str]]:
    """Yield name and text of what a statement of a class declares."""
    if isinstance(node, ast.AnnAssign):
        if "ClassVar" not in (kind := annotation(node.annotation)):
            yield ast.unparse(node.target), f"{ast.unparse(node.target)}: {kind}"
    elif isinstance(node, ast.FunctionDef) and node.name == "__init__":
        for inner in ast.walk(node):
            if isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store):
                yield inner.attr, inner.attr
    elif isinstance(node, ast.FunctionDef):
        text = signature(node)
        if any(ast.unparse(decorator) == "property" for decorator in node.decorator_list):
            text = text.replace("()", "", 1).replace(" ->", ":", 1)
        yield node.name, text


def described(name: str, thing: Any) -> list[str]:
    """Return the lines of a function or class."""
    if not inspect.isclass(thing):
        return [name.removesuffix(name.rpartition(".")[2]) + signature(tree_of(thing))]
    bases = [ast.unparse(base) for base in tree_of(thing).bases]
    return [f"class {name}({', '.join(bases)})", *(f"    {text}" for text in members(thing))]


def results_of(functions: Iterable[Any]) -> dict[str, type]:
    """Return the classes of ours that functions return, and that have no public name."""
    classes: dict[str, type] = {}
    for function in functions:
        gives = inspect.get_annotations(function).get("return")  # a text: of transformers
        for kind in (gives, *getattr(gives, "__args__", ())):
            if is_ours(kind) and kind.__name__ not in penstock.__all__:
                classes[kind.__name__] = kind
    return dict(sorted(classes.items()))


def exported(module: ModuleType, prefix: str) -> dict[str, Any]:
    listed = [name for name in module.__all__ if not name.startswith("__")]
    return {f"{prefix}.{name}": getattr(module, name) for name in listed}


def public_things() -> dict[str, Any]:
    """Return what `penstock` and its public modules export, by name."""
    things = exported(penstock, "penstock")
    for name in ("penstock.ray", "penstock.training"):
        things |= exported(importlib.import_module(name), name)
    return things


def public_classes() -> list[type]:
    """Return the classes that users meet, and what those of ours inherit from."""
    things = public_things().values()
    results = results_of(each for each in things if not inspect.isclass(each)).values()
    met = (*(each for each in things if inspect.isclass(each)), *results)
    return [base for kind in dict.fromkeys(met) for base in kind.__mro__ if is_ours(base)]


def package() -> Iterator[str]:
    keywords, ray = (importlib.import_module(f"penstock.{name}") for name in ("keywords", "ray"))
    things = public_things()
    options = {
        f"penstock.{module.__name__.rpartition('.')[2]}.{name}": kind
        for module in (keywords, ray)
        for name, kind in vars(module).items()
        if is_typeddict(kind) and kind.__module__ == module.__name__
    }
    functions = [thing for thing in things.values() if not inspect.isclass(thing)]
    yield "## Python: functions and classes"
    yield blocks(line for name, thing in things.items() for line in described(name, thing))
    yield "## Python: what functions return"
    yield "These classes are made by the functions above; they are not imported by name."
    results = results_of(functions).items()
    yield blocks(line for name, kind in results for line in described(name, kind))
    yield "## Python: options"
    yield blocks(line for name, kind in options.items() for line in described(name, kind))


# ------------------------------------------------------------------ commands, errors, variables


def commands(place: argparse.ArgumentParser, name: str) -> Iterator[tuple[str, str]]:
    """Yield each command with its arguments and options."""
    words = []
    for action in place._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, inner in action.choices.items():
                yield from commands(inner, f"{name} {word}")
        elif action.help != argparse.SUPPRESS and not isinstance(action, argparse._HelpAction):
            words.append(", ".join(action.option_strings) or str(action.metavar or action.dest))
    yield name, names(words)


def kinds_of_errors(kind: type[errors.PenstockError]) -> Iterator[type[errors.PenstockError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from kinds_of_errors(below)


def exit_codes() -> Iterator[str]:
    found: dict[int, list[str]] = {0: []}
    for kind in kinds_of_errors(errors.PenstockError):
        if kind.__module__ == errors.__name__:
            found.setdefault(kind.exit_code, []).append(kind.__name__)
    yield "## Exit codes"
    yield "[Captioning](usage.md#what-comes-out) says what each means."
    rows = ((str(code), names(kinds)) for code, kinds in sorted(found.items()))
    yield table("| code | errors of `artifacts.errors` |", rows)


def variables() -> Iterator[str]:
    """Yield the variables that the program reads and a page explains; others are its own."""
    read = {
        name
        for top in PACKAGES
        for path in (ROOT / top).rglob("*.py")
        for name in VARIABLE.findall(path.read_text(encoding="utf-8"))
    }
    explained: dict[str, list[str]] = {}
    for page in sorted({*(ROOT / "docs").rglob("*.md")} - {PAGE, ROOT / "docs" / "log.md"}):
        link = page.relative_to(PAGE.parent).as_posix()
        for name in sorted(read & {*VARIABLE.findall(page.read_text(encoding="utf-8"))}):
            explained.setdefault(name, []).append(f"[{link}]({link})")
    yield "## Environment variables"
    rows = ((f"`{name}`", ", ".join(links)) for name, links in sorted(explained.items()))
    yield table("| variable | explained in |", rows)


# ------------------------------------------------------------------ routes


def routes() -> Iterator[str]:
    """Yield the routes of the servers, without those of the page of `serve` itself."""
    service = SimpleNamespace(config=SimpleNamespace(store=""))
    described = app_of(cast(Any, service), {}).openapi()["paths"]
    rows = []
    for path, operations in described.items():
        for method, operation in operations.items():
            asks = [each["name"] for each in operation.get("parameters", ())]
            answers = names(ANSWERS.get(f"{method} {path}", ANSWERS.get(path, ())))
            rows.append((f"`{method.upper()} {path}`", names(asks), answers))
    yield "## Routes of `penstock serve`"
    yield (
        "`/openapi.json` has types, statuses and the fields within fields. "
        "A `?` marks a field that may be missing."
    )
    yield table("| route | parameters | fields of the answer |", rows)
    request = ChatCompletionRequest.model_json_schema()["properties"]
    yield f"A chat request may have {names(request)}."
    app = studio_app(cast(Any, SimpleNamespace(token="TOKEN", proxy="")))
    found = [
        f"{method} {route.path.removeprefix('/TOKEN')}"
        for route in app.routes
        if isinstance(route, Route)
        for method in sorted((route.methods or set()) - {"HEAD"})
    ]
    yield "## Routes of `penstock studio` and `review`"
    yield "Below the token of the address. They serve the page alone, and may change with it."
    yield blocks(found)


# ------------------------------------------------------------------ fields


def run_commands() -> dict[str, list[Any]]:
    """Run commands on a clip and a file that is none, in the current folder, and return what each
    prints and writes."""
    (media := Path("media")).mkdir()
    shutil.copy(penstock_demo.CLIPS / "clip-01.mp4", media)
    shutil.copy(media / "clip-01.mp4", media / "copy.mp4")
    (media / "bad.mp4").write_bytes(b"no medium")
    found: dict[str, list[Any]] = {}
    for command in COMMANDS:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            code = run_command([*command.split(), "--json"])
        assert code in (0, 1), f"{command}: {printed.getvalue()}"
        name = re.sub(r" media| run| ball| --.*", "", command)
        for value in values_in(printed.getvalue()):
            step = value.get("event", "end") not in ("end", "rebuild")
            found.setdefault(EACH_RUN if step else f"penstock {name} --json", []).append(value)
    for folder in FOLDERS:
        for path in sorted(Path(folder).glob("[!.]*.json*")):
            found.setdefault(path.name, []).extend(values_in(path.read_text(encoding="utf-8")))
    return found


def values_in(text: str) -> list[Any]:
    """Return the values of JSON text: one, a list, or one per line."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return [json.loads(line) for line in text.split("\n") if line]
    return value if isinstance(value, list) else [value]


def fields_of(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the place and the name of each field in a value."""
    if isinstance(value, list):
        for item in value:
            yield from fields_of(item, f"{path}[]")
    elif isinstance(value, dict):
        place = f"event {value['event']}" if "event" in value else path
        for name, below in value.items():
            word = "*" if OPEN.search(path) else name
            yield place, word
            yield from fields_of(below, f"{place}.{word}".lstrip("."))


def fields() -> Iterator[str]:
    """Yield the fields of files and of what `--json` prints."""
    yield "## Fields of files and of `--json`"
    yield (
        "A dot leads into an object, `[]` into each entry of a list; `*` stands for names that "
        "depend on the run. Values are explained in [what a run writes](formats.md)."
    )
    own = ("PENSTOCK_STORE", "XDG_STATE_HOME", "XDG_CACHE_HOME")
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
        patch.dict(os.environ, {name: f"{folder}/{name.lower()}" for name in own}),
    ):
        found = run_commands()
    for name, values in sorted(found.items()):
        places: dict[str, set[str]] = {}
        for place, field in (pair for value in values for pair in fields_of(value)):
            places.setdefault(place, set()).add(field)
        if places:
            yield f"### {name}"
            rows = sorted((place and f"`{place}`", names(sorted(n))) for place, n in places.items())
            yield table("| within | fields |", rows)


def named() -> Iterator[str]:
    """Yield what is known without a run."""
    yield from package()
    rows = sorted((f"`{name}`", words) for name, words in commands(parser(), "penstock"))
    yield "## Commands"
    yield table("| command | arguments and options |", rows)
    yield from exit_codes()
    yield from variables()
    yield from routes()


def joined(parts: Iterable[str]) -> str:
    return "\n\n".join(parts) + "\n"


def digest(page: str) -> str:
    """Return the name that the changelog gives to the list of a page."""
    return digest_of(page.partition("\n## ")[2])[:8]


if __name__ == "__main__":
    PAGE.write_text(text := joined((HEAD, *named(), *fields())), encoding="utf-8")
    print(f"CHANGELOG.md says what changed, and names this list: public list `{digest(text)}`")
