"""Finds the commands that the pages show.

A command stands in a fence of `sh` or `console`, or in an indented block whose first line begins
with the name of a program. Lines of a block that begin with `$ ` are commands and the others what
they print.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
FENCE = re.compile(r"^ {0,3}(```+|~~~+)\s*(\S*)")
SHELL = ("sh", "console")
PROGRAMS = (
    "cat", "cd", "cp", "curl", "docker", "echo", "eval", "export", "find", "git", "head", "hf",
    "journalctl", "kill", "loginctl", "ls", "make", "mkdir", "openssl", "penstock", "pip", "pipx",
    "prefect", "python", "ray", "rm", "sbatch", "sed", "sleep", "split", "sudo", "systemctl",
    "tail", "timeout", "touch", "uv", "uvx", "$EDITOR",
)  # fmt: skip
"""What a line of an indented block begins with, if it is a command."""
ASSIGNED = re.compile(r"^[A-Z_]+=")
INLINE = re.compile(r"(?<!`)`((?:penstock|make|python|prefect) [^`\n]+)`(?!`)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """One command, as a page shows it."""

    page: str
    """Path in the clone."""
    line: int
    """Of the page, counted from 1."""
    text: str
    """As it is typed, without the comment."""
    comment: str = ""
    """What stands behind it."""
    code: str = ""
    """Of Python, whose `text` is then its first line."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


def pages(root: Path = ROOT) -> list[Path]:
    """Every page that is for people, README first."""
    first = [root / "README.md", root / "CONTRIBUTING.md"]
    return [*first, *sorted((root / "docs").rglob("*.md"))]


def commands(page: Path, root: Path = ROOT) -> list[Shown]:
    """The commands of a page in their order."""
    name = page.relative_to(root).as_posix()
    found: list[Shown] = []
    for number, lines in blocks(page.read_text(encoding="utf-8")):
        session = any(line.startswith("$ ") for line in lines)
        for line, text in joined(number, lines):
            if session and not text.startswith("$ "):
                continue
            command, comment = parted(text.removeprefix("$ "))
            if command:
                found.append(Shown(page=name, line=line, text=command, comment=comment))
    return sorted([*found, *python(page, name)], key=lambda shown: shown.line)


def python(page: Path, name: str) -> Iterator[Shown]:
    """The Python that stands in fences of a page."""
    text = page.read_text(encoding="utf-8")
    for fence in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        first, code = text.count("\n", 0, fence.start(1)) + 1, fence[1]
        yield Shown(page=name, line=first, text=code.splitlines()[0], code=code)


def blocks(text: str) -> Iterator[tuple[int, list[str]]]:
    """Number of the first line, and the lines, of each block of commands."""
    fence, kind, begun, held = "", "", 0, list[str]()
    before = ""
    for number, line in enumerate([*text.splitlines(), ""], 1):
        mark = FENCE.match(line)
        if fence:
            if mark and mark[1].startswith(fence) and not mark[2]:
                if kind in SHELL:
                    yield begun, held
                fence, held = "", []
            else:
                held.append(line.strip() if kind in SHELL else "")
        elif line.startswith("    ") and (held or not before.strip()):
            begun = begun if held else number
            held.append(line[4:])
        else:
            if held and is_command(held[0]):
                yield begun, held
            held = []
            if mark:
                fence, kind, begun = mark[1], mark[2], number + 1
        before = line


def is_command(line: str) -> bool:
    """Whether an indented block that begins so holds commands."""
    first = line.removeprefix("$ ").split()[0]
    return first in PROGRAMS or ASSIGNED.match(first) is not None or "/bin/" in first


def joined(number: int, lines: list[str]) -> Iterator[tuple[int, str]]:
    """Commands that go on in the next line, on one; each with the number of its first line."""
    begun, text = 0, ""
    for place, line in enumerate(lines):
        if text and not text.endswith("\\") and not line.startswith(" "):
            yield begun, text
            text = ""
        begun = begun if text else number + place
        text = f"{text.removesuffix(chr(92)).rstrip()} {line.strip()}" if text else line.rstrip()
    if text:
        yield begun, text


def parted(text: str) -> tuple[str, str]:
    """A command and the comment behind it."""
    quote = ""
    for place, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter == "#" and (place == 0 or text[place - 1].isspace()):
            return text[:place].strip(), text[place + 1 :].strip()
    return text.strip(), ""


def inline(page: Path, root: Path = ROOT) -> list[Shown]:
    """Commands in the middle of sentences."""
    name = page.relative_to(root).as_posix()
    return [
        Shown(page=name, line=number, text=found)
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1)
        for found in INLINE.findall(line)
    ]
