"""Lines are found by their words in any script, and a query obeys nothing but its own syntax."""

import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from artifacts.errors import EnvironmentFault
from artifacts.index.words import MediumLine, TextLine, WordIndex, build, query_of, words_in

LINES = {
    "English": "A red-haired woman waits at the café, it's 5 o'clock",
    "German": "Eine Straße in München bei Nacht, Fußgänger überqueren sie",
    "Polish": "Pies biegnie przez Łódź",
    "Russian": "Красная машина едет мимо ёлки, чайка и зайчик",
    "Arabic": "سَيَّارَةٌ حمراء تقف أمام البيت",
    "Japanese": "東京タワーの前で猫が寝ている",
    "Chinese": "一只黑猫在手机旁边睡觉",
    "Thai": "แมวสีดำนอนอยู่ข้างโทรศัพท์",
    "Hindi": "लाल गाड़ी घर के सामने खड़ी है",
    "Korean": "빨간 자동차가 집 앞에 서 있다",
}


@pytest.fixture
def index(tmp_path: Path) -> WordIndex:
    return indexed(tmp_path, *LINES.values())


def indexed(folder: Path, *texts: str) -> WordIndex:
    lines = ((TextLine(0, at, 1, 0, 0), text) for at, text in enumerate(texts))
    build(folder / "words", "source", [MediumLine((1 << 63) + 5, 8, 0, 7, 9)], lines)
    return WordIndex(folder / "words")


def found(index: WordIndex, text: str, *without: str) -> list[str]:
    names = [*LINES]
    return sorted(names[line.at] for line in index.find(query_of(text, without)))


@pytest.mark.parametrize(
    ("query", "languages"),
    [
        ("red", ["English"]),
        ("CAFE", ["English"]),
        ("café", ["English"]),
        ("it's", ["English"]),
        ("5", ["English"]),
        ("strasse", ["German"]),
        ("MÜNCHEN", ["German"]),
        ("mu\u0308nchen", ["German"]),
        ("lodz", ["Polish"]),
        ("łódź", ["Polish"]),
        ("ёлки", ["Russian"]),
        ("МАШИНА", ["Russian"]),
        ("зайчик", ["Russian"]),
        ("заичик", []),
        ("سيارة", ["Arabic"]),
        ("سَيَّارَةٌ", ["Arabic"]),
        ("猫", ["Chinese", "Japanese"]),
        ("猫が", ["Japanese"]),
        ("東京タワー", ["Japanese"]),
        ("京東", []),
        ("ﾀﾜｰ", ["Japanese"]),
        ("手机", ["Chinese"]),
        ("手 机", ["Chinese"]),
        ("机手", []),
        ("แมว", ["Thai"]),
        ("โทรศัพท์", ["Thai"]),
        ("गाड़ी", ["Hindi"]),
        ("자동차*", ["Korean"]),
        ("집", ["Korean"]),
    ],
)
def test_find_exact_words(index: WordIndex, query: str, languages: list[str]) -> None:
    assert found(index, query) == languages


@pytest.mark.parametrize(
    ("query", "without", "languages"),
    [
        ('"woman waits"', [], ["English"]),
        ('"waits woman"', [], []),
        ("waits woman", [], ["English"]),
        ('"woman wai"*', [], ["English"]),
        ("haired*", [], ["English"]),
        ("hair*", [], ["English"]),
        ("hair", [], []),
        ("猫", ["手机"], ["Japanese"]),
        ("猫", ["---", "nothing"], ["Chinese", "Japanese"]),
        ('woman "waits at', [], ["English"]),
        ("woman OR machine", [], []),
        ("woman AND waits", [], []),
        ("NEAR(woman waits)", [], []),
        ("words:woman", [], []),
        ("^woman", [], ["English"]),
        ("-woman", [], ["English"]),
        ("{woman} + (waits)", [], ["English"]),
        ('woman"; DROP TABLE line; --', [], []),
        ("wo\0man", [], ["English"]),
        ("woman \udce8", [], ["English"]),
    ],
)
def test_find_syntax(
    index: WordIndex, query: str, without: list[str], languages: list[str]
) -> None:
    assert found(index, query, *without) == languages


@pytest.mark.parametrize("text", ["", "---", '"', '""', "*", "** (", "\udce8", "\0"])
def test_query_of_no_words(text: str) -> None:
    assert query_of(text) == ""


def test_find_any_syntax_is_never_an_error(index: WordIndex) -> None:
    for text in (
        "red " * 3000,
        "猫" * 3000,
        '"' * 999,
        "a* " * 300,
        "_",
        '"_" red',
        "NOT",
        "x\x1b",
    ):
        if query := query_of(text):
            index.find(query)


def test_find_best_first(tmp_path: Path) -> None:
    index = indexed(tmp_path, "a cat and a very long sentence about a dog", "a cat", "no word")
    assert [line.at for line in index.find(query_of("cat"))] == [1, 0]
    assert [line.at for line in index.find(query_of("cat"), 1)] == [0]


def test_lines_about_a_medium_are_those_of_its_path_or_its_content(index: WordIndex) -> None:
    every = [*range(len(LINES))]
    assert [line.at for line in index.about((1 << 63) + 5, 0)] == every
    assert [line.at for line in index.about(5, 8)] == every
    assert index.about(5, 9) == [] == index.about(5, 0)
    assert index.medium(0)[1:] == (8, 0, 7, 9)


def test_the_text_is_not_stored(tmp_path: Path) -> None:
    indexed(tmp_path, "zebra quagga okapi")
    stored = (tmp_path / "words").read_bytes()
    assert b"zebra quagga" not in stored
    assert stored.count(b"okapi") == 1


def test_words_in_separates_each_character_of_scripts_without_spaces() -> None:
    assert words_in("iPhone手机").split() == ["iphone", "手", "机"]
    assert words_in("\uff21\uff22 \uff76\uff9e").split() == ["ab", "\u30ac"]


def test_find_in_a_damaged_file(tmp_path: Path) -> None:
    index = indexed(tmp_path, *(f"word{n} and more of it" for n in range(2000)))
    size = (tmp_path / "words").stat().st_size
    with (tmp_path / "words").open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    with pytest.raises(EnvironmentFault, match="cannot be searched"):
        index.find(query_of("word7"))


def test_build_without_fts5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Without(sqlite3.Connection):
        def executescript(self, script: str) -> sqlite3.Cursor:
            return super().executescript(re.sub("fts5", "fts0", script))

    real = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: real(*a, factory=Without, **k))
    with pytest.raises(EnvironmentFault, match="has no FTS5"):
        indexed(tmp_path, "a")


def test_build_takes_no_locks(tmp_path: Path) -> None:
    """A lock of another process fails SQLite, as a disk without locks does."""
    code = "import fcntl; file = open('words', 'wb'); fcntl.lockf(file, fcntl.LOCK_EX); input('.')"
    command, pipe = [sys.executable, "-c", code], subprocess.PIPE
    with subprocess.Popen(command, cwd=tmp_path, stdin=pipe, stdout=pipe) as holder:
        assert holder.stdout is not None
        assert holder.stdout.read(1) == b"."
        assert indexed(tmp_path, "a cat").find(query_of("cat"))
        holder.communicate(b"\n")
