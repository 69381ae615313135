"""Handles `/v1/answers`: typed questions about an image or a clip, answered by how probable each
label is as the first token of an answer."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import Request
from fastapi.responses import Response

from artifacts.disk.files import encoded
from artifacts.disk.json_shapes import Json
from artifacts.errors import UsageError
from artifacts.schema import ChunkIndex
from artifacts.texts.questions import (
    Probes,
    QuestionProbe,
    Questions,
    answer_of,
    probes_of,
    read_questions,
    stated_scores,
)
from flows.interfaces.serve.caption_routes import CaptionRoutes
from flows.interfaces.serve.captioning import Captioned, CaptionParams
from flows.interfaces.serve.chat import BASE64, data_in, json_in
from flows.interfaces.serve.embedding import warnings_of
from flows.interfaces.serve.guard import in_time
from flows.interfaces.serve.refusals import HttpRefusal, bad_request, json_answer, refusal_of
from flows.interfaces.serve.startup import Service
from flows.interfaces.serve.uploads import body_of, stored

MAX_PROMPTS = 100
"""Largest number of prompts of a request: one for each question or tag."""
FORM = 'Send {"media": "data:image/jpeg;base64,…", "questions": {"car": {"text": "…"}}}'
AnsweredPrompts = Mapping[QuestionProbe, Captioned]


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswersRequest:
    """A validated request."""

    medium: bytes
    questions: Questions
    probes: Probes


class AnswerRoutes:
    """Handles the questions of one service."""

    def __init__(self, service: Service, captions: CaptionRoutes) -> None:
        self._service = service
        self._captions = captions

    async def answer(self, request: Request) -> Response:
        """Answer questions about an image or a clip."""
        began, captions, config = time.monotonic(), self._captions.captions(), self._service.config
        body = await body_of(request, round(config.body_bytes * BASE64))
        requested = await asyncio.to_thread(parse_answers_request, body)
        by_probe = await in_time(
            request.receive, self._measured(requested), config.caption_deadline
        )
        first = next(iter(by_probe.values()))
        rows: list[Json] = [
            row_of(requested, by_probe, at, chunk) for at, chunk in enumerate(first.index.chunks)
        ]
        return json_answer({
            "kind": first.index.kind,
            "rows": rows,
            "model": captions.model,
            "precision": captions.precision(first),
            "cached": all(captioned.cached for captioned in by_probe.values()),
            **warnings_of(first.index),
            "seconds": round(time.monotonic() - began, 4),
        })  # fmt: skip

    async def _measured(self, requested: AnswersRequest) -> AnsweredPrompts:
        """Return what is measured of each prompt. The first one encodes the medium for all. Raises
        HttpRefusal."""
        captions, service = self._captions.captions(), self._service
        by_probe: dict[QuestionProbe, Captioned] = {}
        for probe in dict.fromkeys(
            probe for probes in requested.probes.values() for probe in probes
        ):
            place = requested.medium, service.config.body_bytes, service.temp_store
            upload = await asyncio.to_thread(stored, *place)
            params = CaptionParams(max_tokens=1, labels=probe.labels)
            by_probe[probe] = await captions.caption(upload, probe.prompt, params)
        return by_probe


def row_of(
    requested: AnswersRequest, by_probe: AnsweredPrompts, at: int, chunk: ChunkIndex
) -> dict[str, Json]:
    """Return the answers about one chunk, in the form of `answers.jsonl`. Raises HttpRefusal."""
    answers, unanswered = dict[str, Json](), list[Json]()
    for question in requested.questions:
        firsts = [by_probe[probe].outputs[at].first for probe in requested.probes[question.name]]
        if not all(firsts):
            raise bad_request("the model states no log probabilities", "Use another model")
        is_bounded = any(first["bounded"] for first in firsts)
        scores = [stated_scores(first) for first in firsts]
        if not any(scores):
            unanswered.append(question.name)
            continue
        answers[question.name] = answer_of(question, scores, is_bounded=is_bounded).to_json()
    row: dict[str, Json] = {"start": chunk.start, "end": chunk.end, "answers": answers}
    return row | ({"unanswered": unanswered} if unanswered else {})


def parse_answers_request(body: bytes) -> AnswersRequest:
    """Parse the body of a request. Raises HttpRefusal."""
    fields = json_in(body)
    if not isinstance(fields, dict) or fields.keys() != {"media", "questions"}:
        raise bad_request("the body is no object with media and questions alone", FORM)
    media, questions = fields["media"], fields["questions"]
    if not isinstance(media, str) or not isinstance(questions, dict):
        raise bad_request("media is no text, or questions are no object", FORM)
    try:
        read = read_questions(encoded(questions), "questions")
        probes = probes_of(read, one_token=True)
    except UsageError as error:
        raise refusal_of(error) from error
    if (count := sum(map(len, probes.values()))) > MAX_PROMPTS:
        hint = f"Send at most {MAX_PROMPTS} at once"
        raise HttpRefusal(422, f"{count:,} questions and tags", hint)
    return AnswersRequest(medium=data_in(media), questions=read, probes=probes)
