"""Reads the label list of a command, with the texts that stand for each label."""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from artifacts.digests import digest_of
from artifacts.disk.json_shapes import Json
from artifacts.disk.json_shapes import text as is_text
from artifacts.disk.paths import text_named
from artifacts.errors import UsageError
from artifacts.texts.tables import read_csv
from flows.core.console.lines import quoted, shortened

if TYPE_CHECKING:
    from yaml import Node, SafeLoader

K = TypeVar("K")
V = TypeVar("V")
MAX_NODES = 1_000_000
"""Largest number of texts, lists and mappings in a file with all aliases expanded."""


def _check_aliases(root: "Node") -> None:
    """Raise ValueError if the aliases below a node of YAML expand too much, or contain
    themselves."""
    import yaml

    sizes: dict[int, float] = {}

    def size_of(node: "Node") -> float:
        if isinstance(node, yaml.ScalarNode):
            return 1
        if id(node) not in sizes:
            sizes[id(node)] = math.inf  # of an alias inside of its own node
            inside = chain(*node.value) if isinstance(node, yaml.MappingNode) else node.value
            sizes[id(node)] = 1 + sum(map(size_of, inside))
        return sizes[id(node)]

    size = size_of(root)
    if size == math.inf:
        raise ValueError("an alias contains itself")
    if size > MAX_NODES:
        raise ValueError(f"its aliases expand to more than {MAX_NODES:,} nodes")


MAX_BYTES = 1 << 26
"""Largest file of labels or templates, in bytes."""
NAMED = {".txt", ".csv", ".yaml", ".yml", ".json"}
"""Suffixes that mark a value as a file name, whether the file exists or not."""
TEMPLATES = ("a photo of {}",)
SETTINGS = ("prompts", "parent", "threshold", "group")
"""Settings of a label that a file may contain."""
COLUMN = "label"
"""Column of the names in a CSV file; the others are settings."""
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)
AS_WRITTEN = frozenset({"tag:yaml.org,2002:null", "tag:yaml.org,2002:merge"})
"""Plain scalars of YAML that mean something else than their text."""
TEMPLATES_HINT = "Give a file with one template per line, such as: a photo of {}"
HINT = "Give a file with one label per line, a YAML or JSON file (docs/labels.md), or a,b,c"


@dataclass(frozen=True, kw_only=True, slots=True)
class Label:
    """One label."""

    name: str
    prompts: tuple[str, ...]
    """Texts that stand for the label together."""
    parent: str = ""
    """Name of the label that must be given first."""
    group: str = ""
    """Name of the group from which an image gets one label."""
    threshold: float | None = None
    """Lowest score at which it is given; None: the general rule applies."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelSet:
    """The labels of one command."""

    labels: tuple[Label, ...]
    templates: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        return [label.name for label in self.labels]

    @property
    def texts(self) -> list[list[str]]:
        return [list(label.prompts) for label in self.labels]

    @property
    def digest(self) -> str:
        """Return the digest of everything that determines which labels an image gets."""
        fields = [
            [label.name, label.prompts, label.parent, label.group, label.threshold]
            for label in self.labels
        ]
        return digest_of(fields)


def label_set(value: str, templates: str = "") -> LabelSet:
    """Return the labels given by `--labels` and `--templates`. Raises UsageError."""
    forms = _templates(templates) if templates else TEMPLATES
    if _names_file(value):
        entries = _entries(text_named(value, "labels", MAX_BYTES, HINT), Path(value).expanduser())
    else:
        entries = [(name.strip(), {}) for name in value.split(",")]
    return _set_of(entries, forms, value)


def _names_file(value: str) -> bool:
    """Return whether `--labels` gives a file, or what cannot be one, such as a FIFO. Other values
    are labels: `and/or` is a label, unless the folder `and` exists."""
    path = os.path.expanduser(value)
    if Path(value).suffix.lower() in NAMED or value == "-" or os.path.lexists(path):
        return True
    is_path = value.startswith(("/", "./", "../", "~")) or os.path.isdir(os.path.dirname(path))
    return is_path and not re.search(r"[,\s]", value)


def labels_named(names: Sequence[str]) -> LabelSet:
    """Return labels with these names, which are never read as file names. Raises UsageError."""
    return _set_of([(name, {}) for name in names], TEMPLATES, ",".join(names))


def _set_of(
    entries: Sequence[tuple[str, Mapping[str, Json]]], forms: Sequence[str], value: str
) -> LabelSet:
    labels = tuple(_label(name, given, forms) for name, given in entries)
    _check(labels, value)
    return LabelSet(labels=labels, templates=tuple(forms))


def _templates(value: str) -> list[str]:
    lines = _lines(text_named(value, "templates", MAX_BYTES, TEMPLATES_HINT))
    for line in lines:
        if "{}" not in line:
            raise UsageError(
                f"--templates {value}: {quoted(line)} has no {{}} for the label",
                hint="Put {} where the label is to stand: a photo of {}",
            )
    if not lines:
        raise UsageError(f"--templates {value}: no templates found", hint=TEMPLATES_HINT)
    return lines


def _lines(text: str) -> list[str]:
    lines = (line.strip() for line in text.replace("\r", "\n").split("\n"))
    return [line for line in lines if line and not line.startswith("#")]


def _entries(text: str, path: Path) -> list[tuple[str, Mapping[str, Json]]]:
    """Return the name and the settings of each label in a file."""
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return list(_rows(text, path))
    if suffix not in {".yaml", ".yml", ".json"}:
        return [(line, {}) for line in _lines(text)]
    parsed = _parsed(text, path)
    if not isinstance(parsed, list | dict):
        raise UsageError(
            f"--labels {path} is neither a list of labels nor a mapping with settings", hint=HINT
        )
    for at, name in enumerate(parsed, 1):
        if not isinstance(name, str):
            raise UsageError(
                f"--labels {path}: entry {at} is {json.dumps(name, default=str)[:80]}, no text",
                hint='Quote it if it is a label: "null", "~"',
            )
    if isinstance(parsed, list):
        return [(str(name).strip(), {}) for name in parsed]
    return [(name.strip(), _settings(name, given, path)) for name, given in parsed.items()]


def _rows(text: str, path: Path) -> Iterator[tuple[str, Mapping[str, Json]]]:
    """Yield the labels of a CSV file: by its header, or one per line if it has one column."""
    header, rows = read_csv(text, f"--labels {path}")
    names = [cell.strip() for cell in header]
    if len(names) == 1 and names[0] != COLUMN and not re.search("[;\t]", names[0]):
        names, rows = [COLUMN], [(1, {"": header[0]}), *rows]
    if {*names} - {COLUMN, *SETTINGS} or names.count(COLUMN) != 1 or len({*names}) < len(names):
        raise UsageError(
            f"--labels {path}: its first line names no column {COLUMN}, or unknown ones: "
            f"{','.join(names)[:80]}",
            hint=f"Columns, with commas between them, are {COLUMN}, {', '.join(SETTINGS)}",
        )
    for _, row in rows:
        cells = {name: cell.strip() for name, cell in zip(names, row.values(), strict=True)}
        name = cells.pop(COLUMN, "")
        if name[:1] != "#" or len(names) > 1:
            yield name, {column: cell for column, cell in cells.items() if cell}


def _parsed(text: str, path: Path) -> Json:
    import yaml

    try:
        if path.suffix.lower() == ".json":
            labels: Json = json.loads(text, parse_int=str, parse_float=str, object_pairs_hook=_once)
        else:
            loader = _as_written()(text)
            root = loader.get_single_node()
            if root is not None and "*" in text:
                _check_aliases(root)
            labels = None if root is None else loader.construct_document(root)
        if not is_text(json.dumps(labels, ensure_ascii=False, skipkeys=True, default=str)):
            raise ValueError("it holds half of a surrogate pair")
        return labels
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        message = " ".join(str(error).split())[:160]
        raise UsageError(f"--labels {path} cannot be parsed ({message})", hint=HINT) from error


def _once(pairs: Iterable[tuple[K, V]]) -> dict[K, V]:
    """Return a mapping. Raises ValueError for a key that occurs twice."""
    mapping: dict[K, V] = {}
    for key, value in pairs:
        if key in mapping:
            raise ValueError(f"{str(key)[:80]!r} is listed twice")
        mapping[key] = value
    return mapping


@cache
def _as_written() -> type["SafeLoader"]:
    """Return the loader of YAML that keeps plain scalars as they are written, since 007, 3.10 and
    12:30 are labels, and that refuses a key that occurs twice."""
    import yaml

    class AsWritten(yaml.SafeLoader):  # type: ignore[misc]
        def construct_mapping(self, node: "Node", deep: bool = False) -> dict[Hashable, Json]:
            if isinstance(node, yaml.MappingNode):
                names = (key for key, _ in node.value if isinstance(key, yaml.ScalarNode))
                _once((key.value.strip(), None) for key in names if key.value != "<<")
            mapping: dict[Hashable, Json] = super().construct_mapping(node, deep=deep)
            return mapping

    AsWritten.yaml_implicit_resolvers = {
        first: [resolver for resolver in resolvers if resolver[0] in AS_WRITTEN]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    return AsWritten


def _settings(name: str, given: Json, path: Path) -> Mapping[str, Json]:
    """Return the settings of one label. A text, or a list of texts, is its prompts."""
    if given is None:
        return {}
    if isinstance(given, str | list):
        given = {"prompts": given}
    if not isinstance(given, dict) or set(given) - set(SETTINGS):
        names = set(given) - set(SETTINGS) if isinstance(given, dict) else [given]
        unknown = ", ".join(sorted(map(str, names)))
        raise UsageError(
            f"--labels {path}: label {quoted(name)} has unknown settings: {shortened(unknown, 60)}",
            hint=f"Settings are {', '.join(SETTINGS)}",
        )
    return given


def _label(name: str, given: Mapping[str, Json], forms: Sequence[str]) -> Label:
    prompts, threshold = given.get("prompts"), given.get("threshold")
    every = prompts if isinstance(prompts, list) else [prompts] if prompts is not None else []
    named = [given[key] for key in ("parent", "group") if given.get(key)]
    if not all(isinstance(text, str) for text in (*every, *named)):
        raise UsageError(
            f"label {quoted(name)}: a prompt, parent or group is no text",
            hint='Quote each text: prompts: ["a dog", "null"]',
        )
    texts = [str(text).strip() for text in every] or [form.replace("{}", name) for form in forms]
    number = isinstance(threshold, str) and NUMBER.fullmatch(threshold)
    if threshold is not None and not (number and -1 <= float(str(threshold)) <= 1):
        raise UsageError(
            f"label {quoted(name)}: invalid threshold {quoted(str(threshold))}",
            hint="Give a number from -1 to 1",
        )
    if not all(texts):
        raise UsageError(
            f"label {quoted(name)} has an empty prompt", hint="Leave it out, or fill it in"
        )
    return Label(
        name=name,
        prompts=tuple(texts),
        parent=str(given.get("parent") or "").strip(),
        group=str(given.get("group") or "").strip(),
        threshold=None if threshold is None else float(str(threshold)),
    )


def _check(labels: Sequence[Label], value: str) -> None:
    names = [label.name for label in labels]
    if not names or not all(names):
        raise UsageError(
            f"{'empty label' if names else 'no labels'} in --labels {quoted(value, 200)}", hint=HINT
        )
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise UsageError(f"label {quoted(twice)} is listed twice", hint="Leave one out")
    _check_parents({label.name: label.parent for label in labels})


def _check_parents(parents: Mapping[str, str]) -> None:
    good: set[str] = set()
    for name, parent in parents.items():
        seen, at = {name}, parent
        while at and at not in good:
            if at not in parents:
                raise UsageError(
                    f"label {quoted(name)} has an ancestor {quoted(at)}, which is no label",
                    hint="Add it, or remove the parent",
                )
            if at in seen:
                raise UsageError(
                    f"label {quoted(name)} is its own ancestor", hint="Remove one parent"
                )
            seen.add(at)
            at = parents[at]
        good |= seen
