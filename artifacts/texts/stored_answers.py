"""The lines of answers of a run of questions, and the answers by the chunk that they are about."""

from dataclasses import dataclass
from pathlib import Path

from artifacts.disk.json_records import line_reader
from artifacts.disk.json_shapes import Json
from artifacts.disk.json_types import Number, Text
from artifacts.disk.regular_files import open_regular
from artifacts.schema import values_of
from artifacts.texts.questions import QuestionAnswer


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerRow:
    """The answers about one chunk or image: a line of `answers.jsonl`."""

    media_path: str
    source: str
    start: Number
    end: Number
    """Seconds; both 0 for an image."""
    answers: dict[Text, QuestionAnswer]
    """Name of a question → its answer."""
    unanswered: tuple[str, ...] = ()
    """Names of the questions without an answer, such as for want of room in the context."""
    model: str
    precision: dict[str, str]
    features: Text
    """Key of the features, or of the frames for a server, that the answers are about."""

    def to_json(self) -> dict[str, Json]:
        """Return the fields of a line, without those that an answer or the row does not have."""
        fields: dict[str, Json] = values_of(self)
        fields["answers"] = {name: answer.to_json() for name, answer in self.answers.items()}
        return {name: value for name, value in fields.items() if name != "unanswered" or value}


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

    def _line(self, line: bytes) -> AnswerRow:
        return line_reader(AnswerRow, self._path, "Run the same command again")(line, "")
