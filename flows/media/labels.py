"""Reads the label list of a command, with the texts that stand for each label."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import isfile
from pathlib import Path
from typing import Any

from artifacts.errors import UsageError
from artifacts.keys import digest_of
from artifacts.paths import text_named

MAX_NODES = 1_000_000
"""Largest number of texts, lists and mappings in a file with all aliases expanded."""


def check_aliases(text: str) -> None:
    """Raise ValueError if aliases expand too much or contain themselves, and yaml.YAMLError if the
    text is no YAML."""
    if "*" not in text:
        return
    import yaml

    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, 1))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_nodes.pop()
            _add_node(open_nodes, sizes, anchor, size)
        elif isinstance(event, yaml.ScalarEvent):
            _add_node(open_nodes, sizes, event.anchor, 1)
        elif isinstance(event, yaml.AliasEvent):
            _add_node(open_nodes, sizes, None, _alias_size(event, sizes, open_nodes))


def _alias_size(event: Any, sizes: dict[str, int], open_nodes: list[tuple[str | None, int]]) -> int:
    """Return the number of nodes that an alias expands to. An alias without an anchor is rejected
    later."""
    if event.anchor in {anchor for anchor, _ in open_nodes}:
        raise ValueError(f"the alias *{event.anchor} contains itself")
    return sizes.get(event.anchor, 1)


def _add_node(
    open_nodes: list[tuple[str | None, int]],
    sizes: dict[str, int],
    anchor: str | None,
    size: int,
) -> None:
    """Add a finished node to its parent."""
    if anchor is not None:
        sizes[anchor] = size
    outer, inside = open_nodes[-1]
    if inside + size > MAX_NODES:
        raise ValueError(f"its aliases expand to more than {MAX_NODES:,} nodes")
    open_nodes[-1] = (outer, inside + size)


MAX_BYTES = 1 << 26
"""Largest file of labels or templates, in bytes."""
NAMED = {".txt", ".csv", ".yaml", ".yml", ".json"}
"""Suffixes that mark a value as a file name, whether the file exists or not."""
TEMPLATES = ("a photo of {}",)
"""Default texts for a label."""
SETTINGS = ("prompts", "parent", "threshold", "group")
"""Settings of a label that a file may contain."""
WORD_BITS = 64
"""Largest size of an integer that is a label or a text, in bits."""
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
        """Return the texts of each label."""
        return [list(label.prompts) for label in self.labels]

    @property
    def digest(self) -> str:
        """Return the digest of everything that determines which labels an image gets."""
        fields = [
            [each.name, each.prompts, each.parent, each.group, each.threshold]
            for each in self.labels
        ]
        return digest_of(fields)


def label_set(value: str, templates: str = "") -> LabelSet:
    """Return the labels given by `--labels` and `--templates`. Raises UsageError."""
    forms = _templates(templates) if templates else TEMPLATES
    path = Path(value).expanduser()
    # Path.is_file raises for a name that is too long for a file, such as a long list of labels.
    if path.suffix.lower() in NAMED or isfile(path):
        entries = _entries(text_named(path, "labels", MAX_BYTES, HINT), path)
    else:
        entries = [(name.strip(), {}) for name in value.split(",")]
    return _set_of(entries, forms, value)


def labels_named(names: Sequence[str]) -> LabelSet:
    """Return labels with these names, which are never read as file names. Raises UsageError."""
    return _set_of([(name, {}) for name in names], TEMPLATES, ",".join(names)[:80])


def _set_of(
    entries: Sequence[tuple[str, Mapping[str, Any]]], forms: Sequence[str], value: str
) -> LabelSet:
    labels = tuple(_label(name, given, forms) for name, given in entries)
    _check(labels, value)
    return LabelSet(labels=labels, templates=tuple(forms))


def _templates(value: str) -> list[str]:
    lines = _lines(text_named(value, "templates", MAX_BYTES, HINT))
    for line in lines:
        if "{}" not in line:
            raise UsageError(
                f"--templates {value}: {line!r} has no {{}} for the label",
                hint="Put {} where the label is to stand: a photo of {}",
            )
    if not lines:
        raise UsageError(
            f"--templates {value}: no templates found", hint="Give a line such as: a photo of {}"
        )
    return lines


def _lines(text: str) -> list[str]:
    lines = (line.strip() for line in text.split("\n"))
    return [line for line in lines if line and not line.startswith("#")]


def _entries(text: str, path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the name and the settings of each label in a file."""
    if path.suffix.lower() not in {".yaml", ".yml", ".json"}:
        return [(line, {}) for line in _lines(text)]
    found = _parsed(text, path)
    if isinstance(found, list):
        found = dict.fromkeys(map(_word, found)) if all(map(_is_word, found)) else None
    if not isinstance(found, dict) or not all(map(_is_word, found)):
        raise UsageError(
            f"--labels {path} is neither a list of labels nor a mapping with settings", hint=HINT
        )
    return [(_word(name), _settings(name, given, path)) for name, given in found.items()]


def _parsed(text: str, path: Path) -> Any:
    import yaml

    try:
        if path.suffix.lower() == ".json":
            return json.loads(text)
        check_aliases(text)
        return yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        message = " ".join(str(error).split())[:160]
        raise UsageError(f"--labels {path} cannot be parsed ({message})", hint=HINT) from error


def _is_word(value: Any) -> bool:
    if isinstance(value, int):  # Python refuses to format an int of thousands of digits
        return not isinstance(value, bool) and value.bit_length() <= WORD_BITS
    return isinstance(value, str | float)


def _word(value: Any) -> str:
    return str(value).strip()


def _settings(name: Any, given: Any, path: Path) -> Mapping[str, Any]:
    """Return the settings of one label. A text, or a list of texts, is its prompts."""
    if given is None:
        return {}
    if _is_word(given) or isinstance(given, list):
        given = {"prompts": given}
    if not isinstance(given, dict) or set(given) - set(SETTINGS):
        unknown = ", ".join(sorted(map(str, set(given) - set(SETTINGS)))) if given else given
        raise UsageError(
            f"--labels {path}: label {name!r} has unknown settings: {unknown}",
            hint=f"Settings are {', '.join(SETTINGS)}",
        )
    return given


def _label(name: str, given: Mapping[str, Any], forms: Sequence[str]) -> Label:
    prompts, threshold = given.get("prompts"), given.get("threshold")
    every = prompts if isinstance(prompts, list) else [prompts] if prompts is not None else []
    named = [given[each] for each in ("parent", "group") if given.get(each)]
    if not all(map(_is_word, (*every, *named))):
        raise UsageError(
            f"label {name!r}: a prompt, parent or group is no text",
            hint='Write texts: prompts: ["a dog", "a puppy"]',
        )
    texts = [_word(text) for text in every] or [form.replace("{}", name) for form in forms]
    number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
    if threshold is not None and not (number and -1 <= threshold <= 1):
        raise UsageError(
            f"label {name!r}: invalid threshold {threshold!r}", hint="Give a number from -1 to 1"
        )
    if not all(texts):
        raise UsageError(f"label {name!r} has an empty prompt", hint="Leave it out, or fill it in")
    return Label(
        name=name,
        prompts=tuple(texts),
        parent=_word(given.get("parent") or ""),
        group=_word(given.get("group") or ""),
        threshold=None if threshold is None else float(threshold),
    )


def _check(labels: Sequence[Label], value: str) -> None:
    names = [label.name for label in labels]
    if not names or not all(names):
        raise UsageError(
            f"{'empty label' if names else 'no labels'} in --labels {value!r}", hint=HINT
        )
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise UsageError(f"label {twice!r} is listed twice", hint="Leave one out")
    _check_parents({label.name: label.parent for label in labels})


def _check_parents(parents: Mapping[str, str]) -> None:
    good: set[str] = set()
    for name, parent in parents.items():
        seen, at = {name}, parent
        while at and at not in good:
            if at not in parents:
                raise UsageError(
                    f"label {name!r} has an ancestor {at!r}, which is no label",
                    hint="Add it, or remove the parent",
                )
            if at in seen:
                raise UsageError(f"label {name!r} is its own ancestor", hint="Remove one parent")
            seen.add(at)
            at = parents[at]
        good |= seen
