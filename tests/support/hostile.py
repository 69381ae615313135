"""Checkpoints that mean harm: the demo model with one file replaced."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import penstock_demo

DOUBLING = (
    "{% set ns = namespace(s='x' * 1024) %}"
    "{% for i in range(40) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}"
)
NESTED = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
    "{% endfor %}{% endfor %}{% endfor %}x"
)


def copy_of_demo(folder: Path) -> Path:
    """A copy that may be written to."""
    shutil.copytree(penstock_demo.CHECKPOINT, folder, copy_function=shutil.copyfile)
    return folder


def with_template(folder: Path, template: str) -> Path:
    (copy_of_demo(folder) / "chat_template.jinja").write_text(template)
    return folder


def with_json(folder: Path, name: str, change: Callable[[Any], Any]) -> Path:
    """One file of JSON is what `change` makes of it; what it returns is written when it is not
    None."""
    path = copy_of_demo(folder) / name
    value = json.loads(path.read_text(encoding="utf-8"))
    changed = change(value)
    path.write_text(json.dumps(value if changed is None else changed))
    return folder


def exploding(tokenizer: Any) -> None:
    """Its normalizer makes ten letters of each, twelve times."""
    step = {"type": "Replace", "pattern": {"String": "e"}, "content": "e" * 10}
    tokenizer["normalizer"] = {"type": "Sequence", "normalizers": [step] * 12}


def nested(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


def updated(**values: Any) -> Callable[[dict[str, Any]], None]:
    """Sets values, also those of what is inside: `text_config__hidden_size=7`."""

    def change(value: dict[str, Any]) -> None:
        for path, new in values.items():
            *folders, name = path.split("__")
            at: Any = value
            for folder in folders:
                at = at.setdefault(folder, {})
            at[name] = new

    return change


def header(entries: Mapping[str, Any], data: bytes = b"") -> bytes:
    """A safetensors file that says this."""
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + data
