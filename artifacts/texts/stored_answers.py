"""The answers of a run of questions by the chunk that they are about, read from its lines."""

from dataclasses import dataclass, field
from pathlib import Path

from artifacts.disk.json_records import typed
from artifacts.disk.json_shapes import parse, unreadable
from artifacts.disk.json_types import Text
from artifacts.disk.regular_files import open_regular
from artifacts.texts.questions import QuestionAnswer


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerLine:
    """What of a line of answers belongs to a caption of the same chunk."""

    features: Text
    """Key of what was seen of the chunk."""
    answers: dict[str, QuestionAnswer] = field(default_factory=dict)


class StoredAnswers:
    """Answers that are read from a file of lines when they are wanted. The places of the lines stay
    in memory, and not the lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[str, int] | None = None
        """Key of a chunk → where its line begins."""

    def of(self, features: str) -> dict[str, QuestionAnswer]:
        """Return the answers about a chunk by the names of their questions; none where the file has
        no line about it. Raises EnvironmentFault."""
        if self._places is None:
            self._places = self._read_places()
        if features not in self._places:
            return {}
        with open_regular(self._path) as file:
            file.seek(self._places[features])
            return self._line(file.readline()).answers

    def _read_places(self) -> dict[str, int]:
        places, at = dict[str, int](), 0
        try:
            with open_regular(self._path) as file:
                for line in file:
                    places[self._line(line).features] = at
                    at += len(line)
        except FileNotFoundError:
            return {}
        return places

    def _line(self, line: bytes) -> AnswerLine:
        try:
            return typed(AnswerLine, parse(line.decode()))
        except ValueError as error:
            raise unreadable(self._path, error, "Run the same command again") from error
