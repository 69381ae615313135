"""Finds lines of files by their words, with SQLite's FTS5.

The text itself is not stored: an entry names the file and the bytes of its line. Words are compared
without case, and Latin ones without accents. In a script without spaces each character is a word,
and several of them are a phrase, so that words of one and two characters are found.
"""

import os
import re
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize
from urllib.parse import quote

from artifacts.errors import EnvironmentFault

FORMAT = 2
"""Raised when an index of words is built differently for the same lines."""
FOLDER = "words"
"""Folder of a store, on this machine, with the indexes of words."""
SUFFIX = ".sqlite"
MOST_RANKED = 5000
"""Number of lines that are compared with one another: ranking 200,000 takes 0.2 s."""
TABLES = """
CREATE VIRTUAL TABLE text USING fts5(words, content='',
    tokenize="unicode61 remove_diacritics 2 categories 'L* N* Co M*'");
CREATE TABLE medium (id INTEGER PRIMARY KEY,
    path INTEGER, content INTEGER, file INTEGER, at INTEGER, size INTEGER);
CREATE TABLE line (
    id INTEGER PRIMARY KEY, file INTEGER, at INTEGER, size INTEGER, part INTEGER, medium INTEGER);
CREATE TABLE made (source TEXT);
"""
INDEXES = """
CREATE INDEX medium_path ON medium (path);
CREATE INDEX medium_content ON medium (content);
CREATE INDEX line_medium ON line (medium);
INSERT INTO text (text) VALUES ('optimize');
"""
SPACELESS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\uaa60-\uaadf"  # Thai …
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u302f\u3031-\u312f\u31a0-\u31ff"  # kana, Bopomofo
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U0001b000-\U0001b16f\U00020000-\U0003ffff"  # Han
)
"""Characters of scripts without spaces between words."""
ALONE = re.compile(f"[{SPACELESS}]")
UNSEEN = re.compile("[\0\u00ad\u0591-\u05c7\u0610-\u061a\u0640\u064b-\u065f\u0670\u200b-\u200f]")
"""NUL, soft hyphens, characters of no width, and vowel signs of Hebrew and Arabic."""
STROKES = str.maketrans("đħıłøŧ", "dhilot")
"""Latin letters whose stroke, or missing dot, Unicode does not take for an accent."""
UNITS = re.compile(r'"([^"]*)"?(\*?)|(\S+)')
"""A phrase, a prefix, or a word of a query."""


class TextLine(NamedTuple):
    """Where a text lies."""

    file: int
    """Number of its file."""
    at: int
    """Byte at which its line begins."""
    size: int
    """Bytes of the line."""
    part: int
    """Number of the text in its line."""
    medium: int
    """Number of the medium that it is about."""


class MediumLine(NamedTuple):
    """Where a medium is described."""

    path: int
    """The identity of its path, as an index of vectors has it."""
    content: int
    """That of its content; 0: unknown."""
    file: int
    at: int
    size: int


def words_in(text: str) -> str:
    """Return a text as it is compared."""
    text = normalize("NFKC", text.encode(errors="replace").decode()).casefold().translate(STROKES)
    return ALONE.sub(r" \g<0> ", UNSEEN.sub("", text))


def query_of(text: str, without: Iterable[str] = ()) -> str:
    """Return the FTS5 query for lines that have all words, `prefixes*` and "phrases" of a text, and
    none of the texts `without`. It is empty if the text has no words. Nothing else of FTS5's syntax
    is obeyed."""
    wanted, *unwanted = (" AND ".join(_phrases(query)) for query in (text, *without))
    return wanted and " NOT ".join([f"({wanted})", *(f"({query})" for query in unwanted if query)])


def _phrases(text: str) -> Iterator[str]:
    for phrase, star, word in UNITS.findall(text):
        words = words_in(phrase or word).replace('"', " ")
        if any(map(str.isalnum, words)):
            is_prefix = words[-1].isalnum() if star else words[-1] == "*"
            yield f'"{words}"{"*" * is_prefix}'


def is_word_index(name: str) -> bool:
    """Return whether a file of a store is a finished index of words. It may be deleted at any time:
    the next search makes it again in seconds."""
    folder, _, rest = name.partition("/")
    return folder == FOLDER and rest.endswith(SUFFIX) and "/" not in rest


class WordIndex:
    """The finished index of words in one file. Its methods may be called on several threads."""

    def __init__(self, path: Path) -> None:
        """Open the file, which is replaced and never written. Raises sqlite3.Error."""
        self._path = path
        name = f"file:{quote(os.fsencode(path))}?mode=ro&immutable=1"
        self._connection = sqlite3.connect(name, uri=True, check_same_thread=False)

    def close(self) -> None:
        self._connection.close()

    def source(self) -> str:
        """Return what was given as the source of its lines; empty: another version's. Raises
        sqlite3.Error."""
        ((version,),) = self._connection.execute("PRAGMA user_version")
        ((source,),) = self._connection.execute("SELECT source FROM made")
        return str(source) if version == FORMAT else ""

    def find(self, query: str, most: int = MOST_RANKED) -> list[TextLine]:
        """Return the lines that `query_of` describes, best first by BM25. If there are more than
        `most`, they are the first ones (-1: no limit). Raises EnvironmentFault."""
        ranked = "SELECT rowid AS id, bm25(text) AS score FROM text WHERE text MATCH ? LIMIT ?"
        sql = f"SELECT {', '.join(TextLine._fields)} FROM ({ranked}) JOIN line USING (id)"
        return [TextLine(*row) for row in self._rows(f"{sql} ORDER BY score, id", query, most)]

    def about(self, path: int, content: int) -> list[TextLine]:
        """Return the lines about the medium at a path; if it has none, those about media of the
        same content. Raises EnvironmentFault."""
        return self._about("path", path) or (self._about("content", content) if content else [])

    def _about(self, column: str, identity: int) -> list[TextLine]:
        media = f"SELECT id FROM medium WHERE {column} = ?"
        sql = (
            f"SELECT {', '.join(TextLine._fields)} FROM line WHERE medium IN ({media}) ORDER BY id"
        )
        return [TextLine(*row) for row in self._rows(sql, _signed(identity))]

    def medium(self, number: int) -> MediumLine:
        """Return where a medium is described. Raises EnvironmentFault."""
        fields = ", ".join(MediumLine._fields)
        (row,) = self._rows(f"SELECT {fields} FROM medium WHERE id = ?", number)
        return MediumLine(*row)

    def _rows(self, sql: str, *given: str | int) -> list[tuple[int, ...]]:
        try:
            return self._connection.execute(sql, given).fetchall()
        except sqlite3.Error as error:
            raise EnvironmentFault(
                f"the index of words {self._path} cannot be searched: {error}",
                hint="Delete it and search again: it is made anew from the captions",
            ) from error


def build(
    path: Path, source: str, media: Sequence[MediumLine], lines: Iterable[tuple[TextLine, str]]
) -> None:
    """Write an index of words to a new file, which counts when it is given its final name. Raises
    EnvironmentFault if this Python has no FTS5, and sqlite3.Error."""
    with _writing(path) as connection:
        rows = (
            (number, _signed(place), _signed(content), *at)
            for number, (place, content, *at) in enumerate(media)
        )
        connection.executemany("INSERT INTO medium VALUES (?, ?, ?, ?, ?, ?)", rows)
        for number, (line, text) in enumerate(lines, 1):
            connection.execute("INSERT INTO line VALUES (?, ?, ?, ?, ?, ?)", (number, *line))
            connection.execute(
                "INSERT INTO text (rowid, words) VALUES (?, ?)", (number, words_in(text))
            )
        connection.execute("INSERT INTO made VALUES (?)", (source,))
        for statement in filter(str.strip, INDEXES.split(";")):
            connection.execute(statement)


@contextmanager
def _writing(path: Path) -> Iterator[sqlite3.Connection]:
    # Nobody else opens the file before it has its final name, and some disks have no locks.
    name = f"file:{quote(os.fsencode(path))}?nolock=1"
    connection = sqlite3.connect(name, uri=True, isolation_level=None)
    try:
        connection.executescript(f"PRAGMA journal_mode=OFF; PRAGMA user_version={FORMAT};{TABLES}")
        connection.execute("BEGIN")
        yield connection
        connection.execute("COMMIT")
    except sqlite3.OperationalError as error:
        if "no such module" not in str(error):
            raise
        raise EnvironmentFault(
            "this Python's SQLite has no FTS5, which searches words",
            hint="Use Python from python.org, uv or a distribution; or search with --in vectors",
        ) from error
    finally:
        connection.close()


def _signed(identity: int) -> int:
    """Return 64 bits as SQLite keeps them."""
    return identity - (1 << 64) * (identity >> 63)
