"""A name means one thing in the whole program, names and texts use standard terms, files are short,
and engines are known by name in their package alone."""

import argparse
import ast
import io
import re
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from flows.commands.shared.parser import parser
from stages.decode.engines import (
    AUTO,
    AUTO_SHARED,
    ENGINE_CHOICES,
    ENGINES,
    accepted_by,
    choice_for,
    engines_for,
)
from tests.support.sources import PRODUCT, ROOT, nodes, sources

MOST_LINES = 900
"""Of one file of the product."""
RETIRED = ("told", "asked", "said", "tell")
"""Words of a former private dialect."""
VAGUE = {"found": 0, "each": 0, "value": 320, "item": 135, "entry": 110, "result": 65, "output": 43}
"""Name of a variable or a parameter that does not say what it is → how often it may be bound."""
STORED = {
    "tell": "method of files",
    "asked": "field of the plan that a run records",
    "hear": "name of a stage, which records and tasks state",
    "said": "field of the samples in `tune.json`",
    "previous_lengths": "field of the decode stage's job, which tasks record",
}
"""Identifiers that may have such a word → where the name is stored."""
PHRASES = re.compile(
    r"\b(knows? (no|not|nothing|neither)|in few bits|to the bit|hangs on|(is|are|was|were) told"
    r"|overhears?|is said in|are said in|what is asked|who (asks|loads|reads|holds|takes) it)\b",
    re.IGNORECASE,
)
"""Phrases of the former dialect."""
MOST_OPTIONS = 24
"""Fields of a class that may be options of one command; with more it is wide."""
MOST_IN_PROSE = 20
"""How often a word of RETIRED may stand in comments, texts and pages: plain English has it, too."""


def product_files(pattern: str) -> list[Path]:
    return [path for package in PRODUCT for path in (ROOT / package).rglob(pattern)]


def pages() -> list[Path]:
    """README and every page of docs/ but the log, which is history."""
    found = (ROOT / "docs").rglob("*.md")
    return [ROOT / "README.md", *(page for page in found if page.name != "log.md")]


@cache
def tokens() -> list[tuple[str, int, str]]:
    """Path of the module, type and text of each token of those that may have a retired word."""
    return [
        (source.path, token.type, token.string)
        for source in sources(*PRODUCT)
        if re.search("|".join(RETIRED), source.text, re.IGNORECASE)
        for token in tokenize.generate_tokens(io.StringIO(source.text).readline)
    ]


def test_no_two_classes_have_one_name() -> None:
    places: defaultdict[str, list[str]] = defaultdict(list)
    for source in sources(*PRODUCT):
        for node in source.tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(source.path)
    assert len(places) > 150
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_no_file_is_too_long_to_read() -> None:
    written = sources(*PRODUCT, "scripts", "benchmarks")
    lengths = {source.path: len(source.text.splitlines()) for source in written}
    assert len(lengths) > 300
    assert {path: lines for path, lines in lengths.items() if lines > MOST_LINES} == {}


def test_a_family_of_our_own_is_named_where_it_is_computed_and_nowhere_else() -> None:
    natives = "stages/models/in_tree"
    families = {path.parent.name for path in (ROOT / natives).glob("*/__init__.py")}
    assert families
    naming = {
        source.path.removeprefix(f"{natives}/")
        for source in sources(*PRODUCT)
        if not source.path.endswith("/unsupported.py")  # downloads
        and any(name in source.text.lower() for name in families)
    }
    assert {name.split("/")[0] for name in naming} == {"registry.py", *families}


def words(node: ast.AST) -> Iterator[str]:
    """All names in some code, those in quotes too."""
    for inner in ast.walk(node):
        for text in (getattr(inner, field, "") for field in ("id", "attr", "value")):
            if isinstance(text, str):
                yield from re.findall(r"\w+", text)


def options_of_commands(place: argparse.ArgumentParser) -> Iterator[set[str]]:
    """Where the options of each command are parsed to."""
    yield {action.dest for action in place._actions}
    for action in place._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from options_of_commands(below)


def fields_of(kind: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> set[str]:
    """A class's fields, inherited ones included, and a Protocol's methods."""
    bases = set[str]().union(*map(words, kind.bases))
    found = {
        each.name if isinstance(each, ast.FunctionDef) else ast.unparse(each.target)
        for each in kind.body
        if (isinstance(each, ast.FunctionDef) and "Protocol" in bases)
        or (isinstance(each, ast.AnnAssign) and "ClassVar" not in words(each.annotation))
    }
    return found.union(*(fields_of(classes[base], classes) for base in bases & classes.keys()))


def wide_parameters() -> list[str]:
    """The parameters whose annotation names a wide class, or an alias or a TypeVar of one."""
    statements = [node for source in sources(*PRODUCT) for node in source.tree.body]
    classes = {node.name: node for node in statements if isinstance(node, ast.ClassDef)}
    commands = [*options_of_commands(parser())]
    fields = {name: fields_of(kind, classes) for name, kind in classes.items()}
    wide = {n for n, f in fields.items() if max(len(f & c) for c in commands) > MOST_OPTIONS}
    aliases = [node for node in statements if isinstance(node, ast.Assign)]
    wide |= {
        ast.unparse(node.targets[0]) for node in aliases if wide.intersection(words(node.value))
    }
    arguments = (node for _, node in nodes(ast.arg, *PRODUCT))
    return [a.arg for a in arguments if a.annotation and wide.intersection(words(a.annotation))]


def test_few_parameters_take_a_whole_command() -> None:
    assert 0 < len(wide_parameters()) <= 26, "take the groups of options that are read"


def test_no_name_has_a_retired_word() -> None:
    found = {
        f"{path}: {text}"
        for path, kind, text in tokens()
        if kind == tokenize.NAME and text not in STORED
        if {*RETIRED} & {w.lower() for w in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", text)}
    }
    assert found == set()


def test_no_text_and_no_page_has_a_retired_phrase() -> None:
    texts = (path for path in product_files("*.*") if path.suffix in (".py", ".js", ".html"))
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in (*texts, *pages())
        for match in PHRASES.finditer(path.read_text("utf-8"))
    ]
    assert found == []


MOST_COLUMNS = 140
"""Of the scripts, styles and documents of pages."""


def test_lines_of_pages_can_be_read_without_scrolling_sideways() -> None:
    parts = [path for path in product_files("*.*") if path.suffix in (".js", ".css", ".html")]
    assert len(parts) > 30
    found = [
        f"{path.relative_to(ROOT)}:{number}: {len(line)} columns"
        for path in parts
        for number, line in enumerate(path.read_text("utf-8").split("\n"), 1)
        if len(line) > MOST_COLUMNS
    ]
    assert found == []


def test_few_variables_have_a_vague_name() -> None:
    """Once for each place that binds a variable or a parameter."""
    names = (node.id for _, node in nodes(ast.Name, *PRODUCT) if isinstance(node.ctx, ast.Store))
    bound = Counter(names) + Counter(node.arg for _, node in nodes(ast.arg, *PRODUCT))
    bound -= Counter(
        {"found": 2, "each": 1, "output": 1}
    )  # fields of classes, which say what they are
    assert {name: bound[name] for name, most in VAGUE.items() if bound[name] > most} == {}


def test_prose_seldom_has_a_retired_word() -> None:
    prose = [page.read_text("utf-8") for page in pages()]
    prose += [text for _, kind, text in tokens() if kind in (tokenize.STRING, tokenize.COMMENT)]
    found = Counter(word.lower() for text in prose for word in re.findall("[A-Za-z]+", text))
    assert {word: found[word] for word in RETIRED if found[word] > MOST_IN_PROSE} == {}


HOME = "stages/decode/engines/"


def test_no_file_outside_of_their_package_knows_an_engine_by_name() -> None:
    """But for `transformers` and `gguf`, which are names of packages, too."""
    names = {*ENGINES, AUTO_SHARED} - {"transformers", "gguf"}
    named = re.compile(rf"""(["'])({"|".join(map(re.escape, names))})\1""")
    others = [source for source in sources(*PRODUCT) if not source.path.startswith(HOME)]
    assert len(others) > 400
    assert [source.path for source in others if named.search(source.text)] == []


def test_what_people_may_ask_for_and_what_answers_it_stay_in_their_order() -> None:
    one, shared, batches = "inflight", "inflight-shared", "transformers"
    assert [*ENGINE_CHOICES] == [AUTO, batches, one, "gguf"]
    begun = {choice: [e.name for e in engines_for(choice)] for choice in (AUTO, AUTO_SHARED)}
    assert begun == {AUTO: [one, batches], AUTO_SHARED: [shared, batches]}
    more = {choice: [e.name for e in accepted_by(choice)][2:] for choice in begun}
    assert more == {AUTO: [shared], AUTO_SHARED: [one]}
    for name, engine in ENGINES.items():
        assert engines_for(name) == accepted_by(name) == (engine,)


def test_several_prompts_choose_another_engine() -> None:
    several = {name: choice_for(name, 2) for name in ENGINE_CHOICES}
    changed = {AUTO: AUTO_SHARED, "inflight": "inflight-shared"}
    assert several == {name: changed.get(name, name) for name in ENGINE_CHOICES}
    assert [choice_for(name, 1) for name in ENGINE_CHOICES] == [*ENGINE_CHOICES]


MESSAGES = {
    *("flows/commands/demo/demo_command.py", "flows/interfaces/prefect/view.py"),
    "flows/interfaces/studio/runs.py",
    *("stages/models/gguf/header.py", "stages/process/host_memory.py"),
    "stages/process/exit_diagnosis.py",
}
"""Files that split messages, logs, files of the kernel, or bytes."""


def test_captions_prompts_and_names_are_split_at_line_feeds_alone() -> None:
    """`str.splitlines` also splits at U+2028 and others, which JSON lines and tables may hold."""
    found = {
        str(path.relative_to(ROOT))
        for path in [*product_files("*.py"), *pages()]
        if ".splitlines(" in path.read_text(encoding="utf-8")
    }
    assert found == MESSAGES
