"""Parses the commands that the pages show, by the parsers that would take them, and runs none."""

import contextlib
import io
import re
import shlex
from functools import cache
from pathlib import Path

from artifacts.errors import PenstockError
from flows.commands.plan.training.train_plan import training_of
from flows.commands.shared.arguments import config_of
from flows.commands.shared.parser import CommandParser, parse, parser
from flows.core.options.commands import CaptionConfig
from scripts.pages.shown.commands import ROOT, Shown
from scripts.pages.shown.meanings import typed

OPTION = re.compile(r"--[a-z][\w-]*")
OPERATORS = ("&&", "||", "|", ";", "&", "(", ")", ">", ">>")
FLAGS = {"--help", "--version"}


def wrong(shown: Shown) -> str:
    """What is wrong with a command of a block; empty where it can be typed."""
    if shown.code:
        try:
            compile(shown.code, shown.page, "exec")
        except SyntaxError as error:
            return str(error)
        return ""
    for text in spelled_out(shown.text):
        for words in simple(text):
            check = CHECKS.get(Path(words[0]).name if "/bin/" in words[0] else words[0])
            if check and (message := check(words[1:])):
                return message
    return ""


def wrong_inline(shown: Shown) -> str:
    """What is wrong with a command in a sentence, which may leave out what it needs."""
    for words in simple(shown.text.replace("|", " ").replace("[", "").replace("]", "")):
        check = named_options if words[0] == "penstock" else CHECKS.get(words[0])
        if check and (message := check(words[1:])):
            return message
    return ""


def spelled_out(text: str) -> list[str]:
    """A command, and for a synopsis one more with each thing that may be there."""
    if ("[" not in text and "|" not in text) or text.startswith("prefect") or "'" in text:
        return [typed(text)]
    groups = re.findall(r"\[([^\]]*)\]", text)
    optional = [part for group in groups for part in alternatives(group)]
    needed = without_optional(text)
    others = [
        needed.replace(choice[0], f"{choice[1]} {value}")
        for choice in re.finditer(r"(--\w[\w-]*) (\w[\w.-]*(?:\|\w[\w.-]*)+)", needed)
        for value in choice[2].split("|")
    ]
    return [*map(typed, [text, *others]), *(typed(f"{needed} {part}") for part in optional)]


def without_optional(text: str) -> str:
    """A synopsis without what may be left out."""
    return re.sub(r"\s*\[[^\]]*\]", "", text)


def alternatives(group: str) -> list[str]:
    """What may stand in a pair of brackets: other options, or an option's other values."""
    found = []
    for part in group.split(" | "):
        option, _, values = part.strip().partition(" ")
        found += [f"{option} {value}".strip() for value in values.split("|")]
    return found


def simple(text: str) -> list[list[str]]:
    """The words of each simple command of a line, without assignments before it."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    found: list[list[str]] = [[]]
    for word in lexer:
        if word in OPERATORS:
            found.append([])
        elif found[-1] or not re.match(r"[A-Z_]+=", word):
            found[-1].append(word)
    return [words for words in found if words]


def of_penstock(words: list[str]) -> str:
    """What the command's own parser says, and its configuration of the values."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
            given = parse(words)
        if given.command in ("caption", "plan"):
            given.schema = given.prompt_file = None  # files that a user would have
            if given.questions:  # and what is about them
                given.questions = given.keep = given.prefix = given.suffix = None
            config_of(given, CaptionConfig, sources=False)
        if getattr(given, "train", None):
            training_of(given)
    except SystemExit as end:
        return printed.getvalue().strip() if end.code else ""
    except PenstockError as error:
        return str(error)
    return ""


def named_options(words: list[str]) -> str:
    """Whether command and options of an incomplete `penstock …` exist."""
    place = parser()
    for word in words:
        below = place.of_command(word)
        if below is not place:
            place = below
        elif (option := OPTION.match(word)) and option[0] not in options_of(place) | FLAGS:
            return f"{place.prog} has no option {option[0]}"
    return "" if place.prog != "penstock" or FLAGS & {*words} else "no command of penstock"


def options_of(place: CommandParser) -> set[str]:
    """The long names of a parser's options."""
    return {name for action in place._actions for name in action.option_strings}


def of_make(words: list[str]) -> str:
    """Whether the targets, and the variables that are given, are in the Makefile."""
    names = ("setup", "server", "worker", "lock", "bench")
    called = [ROOT / "scripts" / "run" / name for name in names]
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "Makefile", *called))
    for word in words:
        name, given, _ = word.partition("=")
        known = rf"\$[({{]{name}\b" if given else rf"^{re.escape(word)}:"
        if not re.search(known, text, re.MULTILINE):
            return f"the Makefile has no {name}"
    return ""


def of_python(words: list[str]) -> str:
    """Whether the script or module is there, and its text names the options."""
    if not words or words[0] in ("-c", "-"):
        return ""
    name = words[1] if words[0] == "-m" else words[0]
    if name in ("ensurepip", "pip", "venv"):
        return ""
    path = ROOT / (name.replace(".", "/") if words[0] == "-m" else name)
    files = [path] if path.is_file() else [path.with_suffix(".py"), *sorted(path.glob("*.py"))]
    text = "".join(source_text(file) for file in files if file.is_file())
    if not text:
        return f"{name} is not there"
    options = [found[0] for word in words[1:] if (found := OPTION.match(word))]
    return next((f"{name} has no option {one}" for one in options if f'"{one}' not in text), "")


@cache
def source_text(file: Path) -> str:
    """The text of a script, and of those of its package that it takes its options from."""
    text = file.read_text(encoding="utf-8")
    near = re.findall(r"^from (benchmarks\.\w+) import", text, re.MULTILINE)
    return text + "".join((ROOT / (n.replace(".", "/") + ".py")).read_text() for n in near)


def of_prefect(words: list[str]) -> str:
    """Whether the deployment that is named is one of prefect.yaml."""
    text = (ROOT / "prefect.yaml").read_text(encoding="utf-8")
    named = [word for word in words if re.fullmatch(r"[a-z-]+/[a-z-]+", word)]
    return next(
        (f"prefect.yaml has no {n}" for n in named if f"name: {n.split('/')[1]}" not in text), ""
    )


CHECKS = {
    "penstock": of_penstock,
    "make": of_make,
    "python": of_python,
    "prefect": of_prefect,
}
"""By the name of the program; of others nothing is known."""
