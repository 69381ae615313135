"""Routes for the answers of a run: what the model found probable, and what people decide."""

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from artifacts.disk.json_records import read_jsonl_file
from artifacts.disk.json_shapes import BYTES, Json
from artifacts.disk.regular_files import read_text
from artifacts.disk.stamps import stamp_of
from artifacts.errors import UsageError
from artifacts.texts.decisions import (
    DECISION,
    DecisionKey,
    DecisionRow,
    keep_decisions,
    kept_decisions,
    labels_of,
)
from artifacts.texts.questions import THRESHOLD, YES_NO, Question, QuestionProbe, read_questions
from artifacts.texts.stored_answers import AnswerRow
from flows.commands.review.folder_captions import EditRefused
from flows.core.media.output_rows import MediaRow
from flows.core.options.formats import ANSWERS, MEDIA, QUESTIONS_FILE
from flows.core.pages.document import SHARED, Document, document, part, parts
from flows.interfaces.serve.refusals import json_answer
from flows.interfaces.studio.guard import json_of
from flows.interfaces.studio.session import Studio
from flows.outputs.folder.trust import Belief, belief_in

PAGE, STUDIO_PAGE = "flows.interfaces.studio.answers", "flows.interfaces.studio.page"
AGAIN = "Run the same `penstock ask` again, which rewrites it"


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownProbe:
    """A question, or one of the tags of a question."""

    question: Question
    tag: str
    probe: QuestionProbe


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderAnswers:
    """The answers in a folder as its files have them."""

    out: Path
    revision: str
    """Changes when the answers are written anew."""
    media: list[MediaRow]
    rows: list[AnswerRow]
    """Lines of answers, and the medium of each."""
    probes: list[ShownProbe]

    def key(self, row: int, probe: ShownProbe) -> DecisionKey:
        content, line = self.media[row].content, self.rows[row]
        return DecisionKey(content, line.start, line.end, probe.probe.digest)


def answers_folder(out: Path) -> Path | None:
    """Return the folder with answers, which is this one or the one below that `ask` writes into by
    default; None: there are none."""
    places = (out, out / "answers")
    return next(
        (p for p in places if (p / ANSWERS).is_file() and (p / QUESTIONS_FILE).is_file()), None
    )


def answers_in(out: Path) -> FolderAnswers:
    """Read the answers in a folder. Raises UsageError, EnvironmentFault."""
    if (folder := answers_folder(out)) is None:
        raise UsageError(f"{out} has no answers", hint="Run `penstock ask` first")
    revision = str(stamp_of(folder / ANSWERS))
    rows = read_jsonl_file(AnswerRow, folder / ANSWERS, AGAIN)
    media = [
        medium
        for medium in read_jsonl_file(MediaRow, folder / MEDIA, AGAIN)
        for _ in range(min(medium.captions, len(rows)))
    ]
    if len(media) != len(rows):
        raise UsageError(f"{folder / MEDIA} is not of these answers", hint=AGAIN)
    questions = read_questions(
        read_text(folder / QUESTIONS_FILE, BYTES), str(folder / QUESTIONS_FILE)
    )
    probes = [
        ShownProbe(question=question, tag=tag, probe=probe)
        for question in questions
        for tag, probe in zip(
            question.labels if question.type == "tags" else ("",), question.probes, strict=True
        )
    ]
    return FolderAnswers(out=folder, revision=revision, media=media, rows=rows, probes=probes)


def _shown(answers: FolderAnswers) -> dict[str, Json]:
    """Return chunks and questions as the page gets them."""
    pairs = zip(answers.media, answers.rows, strict=True)
    return {
        "name": answers.out.name,
        "revision": answers.revision,
        "rows": [
            {"name": m.media_path, "start": row.start, "end": row.end, "kind": m.kind}
            for m, row in pairs
        ],
        "probes": [
            {
                "question": probe.question.name,
                "tag": probe.tag,
                "text": probe.probe.prompt,
                "labels": [*probe.probe.labels],
                "threshold": probe.question.threshold if probe.tag else THRESHOLD,
            }
            for probe in answers.probes
        ],
    }


def _answers(
    answers: FolderAnswers, probe: ShownProbe, labels: dict[DecisionKey, str]
) -> Iterator[dict[str, Json]]:
    """Yield each answer about a probe."""
    for at, row in enumerate(answers.rows):
        if (answer := row.answers.get(probe.question.name)) is None:
            continue
        p, raw = answer.p, answer.raw
        if probe.tag:
            p = (answer.probabilities or {}).get(probe.tag)
            raw = (answer.raw_probabilities or {}).get(probe.tag)
        if p is not None:
            answer_text = YES_NO[p < THRESHOLD] if probe.tag else answer.answer
            shown = {"row": at, "p": p, "raw": raw, "margin": answer.margin, "answer": answer_text}
            shown["decided"] = labels.get(answers.key(at, probe))
            yield {name: value for name, value in shown.items() if value is not None}


class AnswersRoutes:
    """The answers in the output folder of the studio."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._page = _page(studio.proxy)
        self._lock = threading.Lock()
        self._read: FolderAnswers | None = None

    async def page(self, _: Request) -> Response:
        headers = {"content-security-policy": self._page.policy}
        return HTMLResponse(self._page.html, headers=headers)

    def _current(self) -> FolderAnswers:
        """Return the answers as they are on the disk now. Raises UsageError, EnvironmentFault."""
        with self._lock:
            answers = self._read
            if answers is None or answers.revision != str(stamp_of(answers.out / ANSWERS)):
                answers = self._read = answers_in(self._studio.out)
            return answers

    async def rows(self, _: Request) -> Response:
        """Return all chunks and questions."""
        return json_answer(await asyncio.to_thread(lambda: _shown(self._current())))

    async def of_probe(self, request: Request) -> Response:
        """Return the answers to a question or about a tag, and what was decided on them."""
        at = request.path_params["probe"]

        def shown() -> dict[str, Json]:
            answers = self._current()
            if at >= len(answers.probes):
                raise EditRefused("there is no such question: reload the page")
            decisions, _ = kept_decisions(answers.out, self._belief(answers).proof(DECISION))
            shown = [*_answers(answers, answers.probes[at], labels_of(decisions))]
            return {"revision": answers.revision, "answers": shown}

        return json_answer(await asyncio.to_thread(shown))

    def _belief(self, answers: FolderAnswers) -> Belief:
        return belief_in(answers.out, self._studio.store, trust=self._studio.trust)

    async def small(self, request: Request) -> Response:
        """Return a thumbnail of a row's medium: of a video, its frame at `at` seconds."""
        answers = await asyncio.to_thread(self._current)
        row, at = request.path_params["row"], request.query_params.get("at", "")
        path = answers.media[row].path if row < len(answers.media) else ""
        try:
            time = float(at) if at else None
        except ValueError:
            time = None
        return await self._studio.thumbnails.answer(Path(path) if path else None, time)

    async def decide(self, request: Request) -> Response:
        """Keep what a person decided on an answer."""
        body = await json_of(request)
        await asyncio.to_thread(self._decide, body)
        return json_answer({})

    def _decide(self, given: dict[str, Json]) -> None:
        answers = self._current()
        if given.get("revision") != answers.revision:
            raise EditRefused("the answers were written anew: reload the page")
        row, at, label = given.get("row"), given.get("probe"), given.get("answer")
        if not (type(row) is int and type(at) is int and isinstance(label, str)):
            raise EditRefused("choose an answer and a label")
        if not (0 <= row < len(answers.rows) and 0 <= at < len(answers.probes)):
            raise EditRefused("there is no such answer")
        probe, medium = answers.probes[at], answers.media[row]
        if label not in ("", *probe.probe.labels) or not medium.content:
            raise EditRefused(f"{label[:80]!r} is no answer to {probe.question.name}")
        key = answers.key(row, probe)
        decision = DecisionRow(
            media_path=medium.media_path,
            question=probe.question.name,
            answer=label,
            tag=probe.tag,
            source=medium.source,
            start=key.start,
            end=key.end,
            content=key.content,
            probe=key.probe,
        )
        with self._lock:
            keep_decisions(answers.out, [decision], self._belief(answers).store)


def _page(proxy: str) -> Document:
    """Return the page, which the page of a proxy may show in a frame."""
    script = parts(SHARED, ("base.js", "asking.js")) + "\n" + part("asking.js", STUDIO_PAGE)
    return document(
        "Penstock answers",
        part("page.html", PAGE),
        part("page.css", PAGE),
        f"{script}\n{part('answers.js', PAGE)}",
        served=True,
        img_src="'self' data:",
        **({"frame_ancestors": proxy} if proxy else {}),
    )
