"""Grades README, pages and docstrings before and after: `python -m scripts.readability [REF]`.

It prints the Automated Readability Index and the Coleman-Liau index of each text at REF and in
the working tree, and each sentence of more than 30 words that a page has now. Code, tables,
headings, links and HTML are left out. The package descriptions of uv and ruff are graded in the
same way. The exit code is 1 if README or the tutorial is harder to read, by either index, than
the harder of the two.

textstat's other indices need a download. `requirements/bench.txt` pins textstat and uv.
"""

import ast
import importlib.metadata
import io
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import textstat

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("penstock", "flows", "stages", "artifacts", "penstock_demo")
BEFORE = "7cc6e93b"
COMPARED = ("uv", "ruff")
JUDGED = ("README.md", "docs/tutorial.md")
MAX_WORDS = 30
"""Words of a sentence on a page; the history in docs/log.md is not counted."""
LEFT_OUT = re.compile(r"^ {0,3}(#|\||\[[^\]]+\]: |(={3,}|-{3,})$)")
ITEM = re.compile(r"^\s*([-*+]|\d+\.)\s+")
REPLACED = (
    (re.compile(r"<[^<>]+>"), " "),  # HTML
    (re.compile(r"!\[[^\]]*\](\([^)]*\)|\[[^\]]*\])"), " "),  # images
    (re.compile(r"\[([^\]]*)\](\([^)]*\)|\[[^\]]*\])"), r"\1"),  # links keep their text
    (re.compile(r"`+[^`]*`+"), " "),
    (re.compile(r"https?://\S+"), " "),
    (re.compile(r"(?<=\d)[.,](?=\d)"), ""),  # a decimal point ends no sentence
    (re.compile(r"[*_]{1,3}(?=\S)|(?<=\S)[*_]{1,3}"), ""),
)


def blocks(text: str) -> list[str]:
    """Return the paragraphs and list items of a Markdown text, each in one line."""
    found: list[list[str]] = [[]]
    fenced = False
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    for line in text.splitlines():
        if line.lstrip().startswith(("```", "~~~")):
            fenced = not fenced
            found.append([])
        elif fenced or LEFT_OUT.match(line) or not line.strip():
            found.append([])
        elif ITEM.match(line):
            found.append([ITEM.sub("", line)])
        elif found[-1] or not line.startswith("    "):
            found[-1].append(line.strip())
    return [" ".join(lines) for lines in found if lines]


def prose(text: str) -> str:
    """Return the sentences of a Markdown text, one paragraph or list item in each line."""
    lines = []
    for block in blocks(text):
        for pattern, replacement in REPLACED:
            block = pattern.sub(replacement, block)
        if re.search("[A-Za-z]{2}", block):
            lines.append(re.sub(r"\s+", " ", block).strip().rstrip(".:;,") + ".")
    return "\n".join(lines)


def docstrings(source: str) -> str:
    """Return the docstrings of a module, with blank lines between them."""
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, holders)]
    return "\n\n".join(ast.get_docstring(node) or "" for node in nodes)


def texts(files: dict[str, str]) -> dict[str, str]:
    """Return the prose of each page among some files, and of all docstrings together."""
    pages = {name: prose(text) for name, text in sorted(files.items()) if name.endswith(".md")}
    modules = [docstrings(text) for name, text in sorted(files.items()) if name.endswith(".py")]
    return pages | {"docstrings": prose("\n\n".join(modules))}


def belongs(name: str) -> bool:
    """Return whether a file is README, a page, or a module of the product."""
    page = name == "README.md" or (name.startswith("docs/") and name.endswith(".md"))
    return page or (name.split("/")[0] in PACKAGES and name.endswith(".py"))


def files_at(ref: str) -> dict[str, str]:
    """Return the files of a git reference; none if the clone lacks it."""
    done = subprocess.run(["git", "archive", ref], cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        return {}
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        members = [one for one in archive.getmembers() if one.isfile() and belongs(one.name)]
        readers = {one.name: archive.extractfile(one) for one in members}
        return {name: reader.read().decode() for name, reader in readers.items() if reader}


def files_here() -> dict[str, str]:
    """Return the files of the working tree."""
    paths = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    paths += [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in paths}


def grades(text: str) -> tuple[float, float]:
    """Return the Automated Readability Index and the Coleman-Liau index of prose."""
    return textstat.automated_readability_index(text), textstat.coleman_liau_index(text)


def long_sentences(text: str) -> list[str]:
    """Return the sentences of prose that have more than MAX_WORDS words."""
    sentences = re.split(r"(?<=[.!?:])\)?\s+", text)
    return [each for each in sentences if len(re.findall(r"\w[\w'/%-]*", each)) > MAX_WORDS]


def shown(found: tuple[float, float] | None) -> str:
    """Return two grades as two columns."""
    return f"{found[0]:7.1f} {found[1]:7.1f}" if found else f"{'-':>7} {'-':>7}"


def main() -> int:
    """Print the grades; return 1 if README or the tutorial is too hard to read."""
    ref = sys.argv[1] if len(sys.argv) > 1 else BEFORE
    before = {name: grades(text) for name, text in texts(files_at(ref)).items() if text}
    here = texts(files_here())
    after = {name: grades(text) for name, text in here.items() if text}
    print(f"{'':28} {'before':>7} {'':7} {'after':>7}")
    print(f"{'':28} {'ARI':>7} {'C-L':>7} {'ARI':>7} {'C-L':>7}")
    for name in [*sorted(set(before) | set(after), key=lambda name: (name != "README.md", name))]:
        print(f"{name:28} {shown(before.get(name))} {shown(after.get(name))}")
    pages = {name: text for name, text in here.items() if name not in ("docstrings", "docs/log.md")}
    long = [f"{name}: {each}" for name, text in pages.items() for each in long_sentences(text)]
    print("\n".join([f"sentences of more than {MAX_WORDS} words: {len(long)}", *long]))
    limits = []
    for package in COMPARED:
        limits.append(grades(prose(str(importlib.metadata.metadata(package)["Description"]))))
        print(f"{'description of ' + package:28} {'':7} {'':7} {shown(limits[-1])}")
    limit = tuple(max(each) for each in zip(*limits, strict=True))
    hard = [name for name in JUDGED if any(a > b for a, b in zip(after[name], limit, strict=True))]
    print(f"harder to read than both descriptions: {', '.join(hard) or 'none'}")
    return bool(hard)


if __name__ == "__main__":
    sys.exit(main())
