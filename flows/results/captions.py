"""Builds the captions of a run's files from stored records and user corrections. Runs no model and
writes nothing.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from heapq import merge
from operator import attrgetter
from typing import Any

from artifacts.captions import Caption, answer_in, ended_of
from artifacts.edits import REJECTED
from artifacts.shapes import parse
from flows.job.context_note import beyond_context
from flows.job.prepare import Job
from flows.ledger.tasks import Medium, Task
from flows.media.media_files import MediaFile
from flows.options.commands import RunOptions
from flows.options.text import TextOptions
from stages.decode.generation import SamplingParams
from stages.decode.json_schema import fields_of, follows, words_of

THINKING_STILL = "it was still thinking when it was cut: --max-new-tokens lets it come to an end"
ROUND = "it went round in circles, and was said once more where it may not"
ROUND_STILL = "it went round in circles, and once more when it was said again"
SHORTENED = "it was closed early, because it had as many tokens as it may have"
MISSHAPEN = "its correction does not follow the schema, and does not count"
MIDDLE = ("only the chunk's middle frame was seen: the model takes one picture a prompt",)


def captions_of(job: Job, file: MediaFile, medium: Medium) -> list[Caption]:
    """Return the captions of one file that are there, a line a chunk, in time order."""
    made = job.ledger["captions"]
    return [
        caption_of(job, file, task, made.meta(task["captions"]))
        for task in job.ledger.tasks([medium])
        if task["captions"] in made
    ]


def caption_of(job: Job, file: MediaFile, task: Task, stored: Mapping[str, Any]) -> Caption:
    """Return the caption of one chunk of a file, with what was stored of it."""
    index = job.ledger.media_index(task.medium)
    assert index is not None
    one_frame = task.medium.kind == "video" and job.model.one_frame
    config = job.config
    params = SamplingParams.of(config)
    said, warnings = _said(
        stored, strip_think=TextOptions.of(config).strip_think and not params.schema
    )
    if beyond := beyond_context(job.model, config, task, stored["tokens"]):
        warnings = [beyond, *warnings]
    edit = job.edits().of(task["features"], file.name, task.prompt, said)
    words = said if edit.caption is None else edit.caption
    if params.schema and words != said and not follows(params.schema, words):
        words, warnings = said, [*warnings, MISSHAPEN]
    return Caption(
        media_path=file.media_path,
        source=file.source,
        start=task.chunk.start,
        end=task.chunk.end,
        caption=around(config, words),
        fields=fields_of(words) if params.schema else None,
        model=job.model.name,
        prompt=task.prompt,
        precision=task.namespaces.precision,
        frames=task.chunk.times,
        features=task["features"],
        tokens=stored["tokens"],
        ended=ended_of(stored, task.namespaces.limit),
        name=file.name,
        warnings=(*index.warnings, *(MIDDLE if one_frame else ()), *warnings),
        original="" if words == said else around(config, said),
        review=edit.review,
    )


def around(config: RunOptions, words: str) -> str:
    """Return the words of a caption with what is put before and after all of them. What a program
    may read as JSON gets no trigger, which would break it."""
    wording = TextOptions.of(config)
    is_json = words.lstrip()[:1] in ("{", "[") and (
        SamplingParams.of(config).schema or _parses(words)
    )
    trigger = f"{wording.trigger}, " if wording.trigger and not is_json else ""
    return f"{trigger}{wording.prefix}{words}{wording.suffix}"


def _parses(words: str) -> bool:
    try:
        parse(words)
    except ValueError:
        return False
    return True


def unrejected(captions: Iterable[Caption]) -> Iterator[Caption]:
    """Yield what people did not reject: `captions.jsonl` has the others too, and nothing else."""
    return (each for each in captions if each.review != REJECTED)


def in_words(job: Job, file: MediaFile, medium: Medium) -> list[Caption]:
    """Return the captions of one file as people read them: of a schema of one text, or of one list
    of them, without its JSON."""
    captions, config = captions_of(job, file, medium), job.config
    params = SamplingParams.of(config)
    if not params.schema:
        return captions
    words = [words_of(params.schema, caption.fields or {}) for caption in captions]
    return [
        caption if said is None else replace(caption, caption=around(config, said))
        for caption, said in zip(captions, words, strict=True)
    ]


def _said(stored: Mapping[str, Any], *, strip_think: bool) -> tuple[str, list[str]]:
    """Return the words of a stored caption, and what is to be known of how they came about."""
    words, warnings = str(stored["caption"]), []
    if stored.get("retried"):
        warnings.append(ROUND_STILL if stored.get("loops") else ROUND)
    if stored.get("shortened"):
        warnings.append(SHORTENED)
    if strip_think:
        answer = answer_in(words)
        if words and not answer and not words.rstrip().endswith("</think>"):
            warnings.append(THINKING_STILL)
        elif answer != words:
            warnings.append("what it thought before is left out")
        words = answer
    return words, warnings


def captions_by_file(job: Job) -> Iterator[list[Caption]]:
    """Yield the captions of each file that are there, in source order; those that several prompts
    gave of a chunk follow one another."""
    for group in job.by_file:
        asked = [captions_of(job, file, medium) for file, medium in group]
        yield [*merge(*asked, key=attrgetter("start"))]
