"""Lines of JSON that terminals may show hold nothing that a terminal obeys."""

import json
import unicodedata
from typing import Any

import pytest

from flows.cli.search_command import lines_of
from flows.console.lines import json_line
from flows.search.ask import Hit

OBEYED = [*map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0)), *"\u202a\u202e\u2066\u2069\u200f"]


@pytest.mark.parametrize("letter", OBEYED, ids=lambda letter: f"{ord(letter):04x}")
def test_what_a_terminal_obeys_is_escaped_and_means_the_same(letter: str) -> None:
    line = json_line({"path": f"ü{letter}😀"})
    assert letter not in line and "ü" in line and "😀" in line
    assert json.loads(line) == {"path": f"ü{letter}😀"}


def test_hits_are_printed_so() -> None:
    name = "a\x9b31m\u202egpj.b"
    fields: dict[str, Any] = {
        "rank": 1,
        "score": 1.0,
        "media_path": name,
        "path": name,
        "time": None,
        "at": None,
    }
    (line,) = lines_of([Hit(**fields, box=None, key="k", copies=0, copy_paths=(name,))])
    assert line.endswith("}\n") and json.loads(line)["path"] == name
    assert not any(unicodedata.category(each) in ("Cc", "Cf") for each in line[:-1])
