"""Implements OpenAI's embeddings API for texts, with the text half of a dual encoder."""

import asyncio
import base64
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
from fastapi import Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from artifacts.disk.json_shapes import Json
from flows.core.checkpoint.prompt_tokens import PromptTokens
from flows.interfaces.serve.chat import json_in, no_model
from flows.interfaces.serve.embedding import MAX_LETTERS, MAX_TEXTS
from flows.interfaces.serve.guard import in_time
from flows.interfaces.serve.refusals import HttpRefusal, invalid, json_answer, shown_name
from flows.interfaces.serve.startup import Service
from flows.interfaces.serve.uploads import body_of

Words = Annotated[str, Field(pattern=r"\S", max_length=MAX_LETTERS)]
MAX_BODY = 16 << 20


class EmbeddingsRequest(BaseModel):
    """A request for the vectors of texts. Descriptions complete "Give …"."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")
    input: Words | Annotated[list[Words], Field(min_length=1, max_length=MAX_TEXTS)] = Field(
        description=f"1 to {MAX_TEXTS:,} texts of 1 to {MAX_LETTERS:,} characters, no tokens"
    )
    model: str | None = Field(None, description="the name from GET /v1/models")
    encoding_format: Literal["float", "base64"] | None = Field(None, description="float or base64")
    dimensions: int | None = Field(None, description="the model's own number, or leave it out")
    user: str | None = Field(None, description="a text")


class EmbeddingRoutes:
    """Handles the embedding requests of one service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @cached_property
    def _tokens(self) -> PromptTokens:
        assert self._service.job is not None
        return PromptTokens(self._service.job.model.folder)

    async def embed(self, request: Request) -> Response:
        """Return the vectors of texts, each of length 1."""
        texts, job = self._service.texts, self._service.job
        if texts is None or job is None:
            why = "this server has no model for vectors"
            raise HttpRefusal(404, why, "Start it with --model or --index")
        asked = embeddings_request(await body_of(request, MAX_BODY))
        name = shown_name(job.model.name)
        if asked.model not in (None, name, job.model.name):
            raise no_model(asked.model or "")
        words = [asked.input] if isinstance(asked.input, str) else asked.input
        work = asyncio.gather(*(texts.vectors([[text]]) for text in words))
        embedded = await in_time(request.receive, work, self._service.config.deadline)
        if long := [at for at, vectors in enumerate(embedded) if vectors.cut]:
            raise HttpRefusal(
                400,
                f"the text {long[0]} of input has more tokens than {name} reads",
                "Send a shorter text",
                code="context_length_exceeded",
                param="input",
            )
        if asked.dimensions not in (None, embedded[0].vectors.shape[1]):
            width = embedded[0].vectors.shape[1]
            raise invalid("dimensions", f"the model's vectors have {width} dimensions")
        vectors = [one.vectors[0] / np.linalg.norm(one.vectors[0]) for one in embedded]
        rows: list[Json] = [
            {
                "object": "embedding",
                "index": at,
                "embedding": base64.b64encode(vector.astype("<f4").tobytes()).decode()
                if asked.encoding_format == "base64"
                else vector.tolist(),
            }
            for at, vector in enumerate(vectors)
        ]
        count = await asyncio.to_thread(lambda: sum(map(self._tokens.count, words)))
        usage = {"prompt_tokens": count, "total_tokens": count}
        return json_answer({"object": "list", "data": rows, "model": name, "usage": usage})


def embeddings_request(body: bytes) -> EmbeddingsRequest:
    """Parse the body of a request. Raises HttpRefusal, which names the first wrong parameter."""
    try:
        return EmbeddingsRequest.model_validate(json_in(body))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        name = str(next(iter(first["loc"]), "input"))
        field = EmbeddingsRequest.model_fields.get(name)
        hint = f"Give {field.description}" if field else "Leave it out"
        raise invalid(name, f"{name[:80]} is not as it has to be", hint) from error
