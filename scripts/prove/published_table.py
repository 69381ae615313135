"""The list of published folders, and the table of what came of them in docs/models.md."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.builders.common import cells, divided, heads, put

LIST = Path(__file__).with_name("published.toml")
PAGE = Path(__file__).parents[2] / "docs" / "models.md"
MARK = "published folders"
EXPECTATIONS = ("equal", "planned", "refused")
COLUMNS = "published as | files | family | compared with | result | plan at full size"
SECTION = """
## Tried with published files

`scripts/prove/published.py` writes this table. Each folder has the configuration, tokenizer,
processor and chat template as they were published, and the names of published weights; the weights
themselves are random and the layers few and narrow, so a row says nothing about the captions of a
model. The same frames go through Penstock's stages and through transformers {version} alone, in
32 bit and greedily. *Equal* means that the ids of the prompt, the pixels (to the last bit, or by
the stated difference) and all tokens are the same, or that vectors and scores differ by less than
1e-5. *Plan at full size* is what `penstock plan` takes for the weights of the published
configuration, beside the sum of the shapes of its tensors. Quantized folders are compared in 32
bit, and planned in the layout of their `quantization_config`. Files that a repository lacks came
from elsewhere, as `scripts/prove/published.toml` says.

<!-- published folders -->
<!-- end of published folders -->
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """A folder of the list."""

    name: str
    """Name of its folder in SNAPSHOTS."""
    hub_id: str
    """Where its authors published it."""
    repository: str = ""
    """Public repository that holds the files; empty if a page quotes them."""
    commit: str = ""
    path: str = "."
    """Folder in the repository, or the configuration's file."""
    page: str = ""
    """Page that quotes the configuration."""
    expect: str
    """`equal`; `planned`: only the plan, because files lack that prompts need; or `refused: WORDS`,
    which the command's one line contains."""
    weights_decide: bool = False
    """Whether a refusal is one of weights, so that the small model must be written first."""
    lacks: tuple[str, ...] = ()
    """Files that the repository does not have."""
    filled: tuple[str, ...] = ()
    """Files that came from elsewhere, and from where."""
    files_of: str = ""
    """Name of another folder of the list that gives the files of a processor or tokenizer which
    this one lacks."""
    turn: str = ""
    """Text around `{media}` and `{prompt}` by the authors' page; empty: the chat template."""
    note: str = ""
    """What a reader of the row must know."""

    def __post_init__(self) -> None:
        if self.expect.partition(":")[0] not in EXPECTATIONS:
            known = ", ".join(EXPECTATIONS)
            raise ValueError(f"{self.name} expects {self.expect!r}. Accepted: {known}")
        if not (self.repository and self.commit) and not self.page:
            raise ValueError(f"{self.name} has neither a repository with a commit nor a page")

    @property
    def source(self) -> str:
        """Return where its files are, as the table says it."""
        if self.repository:
            return f"{self.repository}@{self.commit[:8]}"
        return f"quoted at [{self.page.removeprefix('https://').split('/blob/')[0]}]({self.page})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What came of one folder."""

    listed: Listed
    family: str = ""
    compared_with: str = ""
    result: str
    plan: str = ""
    good: bool
    """Whether it is as the list expects."""

    def line(self) -> str:
        """Return the row of the table."""
        result = f"{self.result}; {self.listed.note}" if self.listed.note else self.result
        known = (self.listed.hub_id, self.listed.source, self.family, self.compared_with)
        return cells([*known, result, self.plan])


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedList:
    """What the list says."""

    folders: tuple[Listed, ...]
    not_found: Mapping[str, str] = field(default_factory=dict)
    """Model or family → what of it is in no public repository that was looked at."""

    @classmethod
    def read(cls, path: Path) -> "PublishedList":
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        folders = tuple(Listed(**_fields(entry)) for entry in values["folder"])
        return cls(folders=folders, not_found=values.get("not_found", {}))


def _fields(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {n: tuple(value) if isinstance(value, list) else value for n, value in entry.items()}


def table(listed: PublishedList, rows: Sequence[Row], before: str = "") -> str:
    """Return the table in the order of the list. Folders that were not tried keep the line that
    they have in the table `before`."""
    lines = {_key(line): line for line in before.splitlines() if line.startswith("| ")}
    lines |= {_key(row.line()): row.line() for row in rows}
    keys = (_key(Row(listed=one, result="", good=True).line()) for one in listed.folders)
    rows_of_list = [heads(COLUMNS), *(lines[key] for key in keys if key in lines)]
    return "\n".join([*rows_of_list, ""]) + _missing(listed)


def _key(line: str) -> tuple[str, ...]:
    """Return the cells of a line that name its folder."""
    return tuple(line.split(" | ")[:2])


def _missing(listed: PublishedList) -> str:
    lines = [f"- {name}: {why}\n" for name, why in listed.not_found.items()]
    return "".join(["\nNot found, and so not tried:\n\n", *lines]) if lines else ""


def write_table(listed: PublishedList, rows: Sequence[Row], page: Path) -> None:
    """Put the rows into the section of the page. Raises ValueError if the page has none."""
    text = page.read_text(encoding="utf-8")
    page.write_text(put(text, MARK, table(listed, rows, divided(text, MARK)[1])), encoding="utf-8")


def section(page: str, version: str) -> str:
    """Return the whole section, with the table that a page has."""
    return put(SECTION.format(version=version), MARK, divided(page, MARK)[1])
