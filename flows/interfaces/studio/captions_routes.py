"""Routes for the captions of one run, and checks of the data sets that the run wrote.

The routes read, edit and write captions, and queue a run that captions chunks again. The checks
show what trainers will see of a data set: how many samples, which of them have no text, and which
have no file.
"""

import asyncio
import contextlib
import mimetypes
import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from artifacts.disk.json_shapes import Json
from artifacts.disk.regular_files import refuse_links
from artifacts.errors import PenstockError
from artifacts.texts.edits import EDITS, REJECTED, UNTOUCHED
from artifacts.texts.trainers import TRAINERS
from artifacts.wording import counted
from flows.commands.review.folder_captions import EditRefused
from flows.commands.review.seen_captions import Trained
from flows.core.media.media_file import kind_of
from flows.core.options.formats import EXACT
from flows.interfaces.serve.refusals import JSON, ShownFile, json_answer, shown_file
from flows.interfaces.studio.guard import json_of
from flows.interfaces.studio.run_captions import NUMBER, RunCaptions
from flows.interfaces.studio.runs import AGAIN, Kind, QueuedRun
from flows.interfaces.studio.session import FOLDER, MOST, RecordedCommand, Studio, answers_of
from flows.interfaces.studio.values import checked, line_of
from flows.outputs.data_sets import UNCUT, unread
from flows.outputs.marker import read_marker
from flows.outputs.seen.check import lines_on
from flows.outputs.seen.sets import TrainedSample, samples_in

NAMED = 5
"""Samples that a finding names."""


def sets_in(out: Path, captions: int, chunks: Counter[str]) -> list[dict[str, Json]]:
    """Return a finding for each data set in a folder. `captions` were not rejected, and are of
    `chunks`: path of a medium → number."""
    findings, marker = list[dict[str, Json]](), read_marker(out)
    is_copied = marker is None or marker.media == EXACT
    for form in TRAINERS:
        if not (out / form).is_dir():
            continue
        samples, problem = list[TrainedSample](), ""
        try:
            samples = samples_in(out / form, form)
        except PenstockError as error:
            problem = f"cannot be read: {error.message}"
        empty = [sample.path.name for sample in samples if not any(map(str.strip, sample.captions))]
        missing = [sample.path.name for sample in samples if not sample.path.is_file()]
        findings.append(
            {
                "format": form,
                "folder": str(out / form),
                "samples": len(samples),
                "is_old": is_old(out, form),
                "captions": captions,
                "left_out": [*left_out(form, chunks, is_copied=is_copied)],
                "empty": [len(empty), empty[:NAMED]],
                "missing": [len(missing), missing[:NAMED]],
                "lost": [] if problem else lines_on(out, form),
                "problem": problem,
            }
        )
    return findings


def is_old(out: Path, form: str) -> bool:
    """Return whether a caption was edited after a data set was written."""
    with contextlib.suppress(OSError):
        times = (path.stat().st_mtime for path in (out / form).iterdir())
        return (out / EDITS).stat().st_mtime > max(times, default=0.0)
    return False


def left_out(form: str, chunks: Counter[str], *, is_copied: bool) -> Iterator[str]:
    """Yield what a trainer does not read: kinds of media, in the words of the run, and files by
    their suffix, unless the data set has copies of those."""
    trainer, kinds, names = TRAINERS[form], Counter[tuple[str, str]](), list[str]()
    for path, count in chunks.items():
        kind = kind_of(path)
        if kind not in trainer.folders:
            kinds[unread(kind, Path(path))] += count
        elif kind == "video" and count > 1 and not is_copied:
            kinds["chunk", UNCUT] += count
        elif not (is_copied or trainer.reads(kind, path)):
            names.append(Path(path).name)
    for (noun, why), count in kinds.items():
        yield f"{counted(count, noun)} ({why})"
    if names:
        named = ", ".join(names[:NAMED]) + ", …" * (len(names) > NAMED)
        yield f"{counted(len(names), 'file')} that {form} does not read: {named}"


Queue = Callable[[RunCaptions, dict[str, Json]], QueuedRun]
LINES = "captions.jsonl"
SHOWN = ("image/", "video/", "audio/")
FETCHED_AT_ONCE = 8


class CaptionsRoutes:
    """The captions of the runs that this studio knows."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._fetching = asyncio.Semaphore(FETCHED_AT_ONCE)

    def _captions(self, request: Request) -> RunCaptions:
        return self._studio.of(request.path_params["run"])

    async def captions(self, request: Request) -> Response:
        """Return what changed since a revision."""
        captions = self._captions(request)
        since = request.query_params.get("since", "")
        pieces = await asyncio.to_thread(captions.body, since)
        return StreamingResponse(iter(pieces), media_type=JSON)

    async def edit(self, request: Request) -> Response:
        captions, edit = self._captions(request), await json_of(request)
        return json_answer(await asyncio.to_thread(captions.apply, edit))

    async def history(self, request: Request) -> Response:
        """Return the actions that can be undone, and what undo and redo would take."""
        return json_answer(await asyncio.to_thread(self._captions(request).history))

    async def ask(self, request: Request) -> Response:
        return await self._queued(request, self._again)

    async def _queued(self, request: Request, queue: Queue) -> Response:
        """Answer which run `queue` put into the queue, from a run's captions and what was sent."""
        captions, body = self._captions(request), await json_of(request)
        run = await asyncio.to_thread(queue, captions, body)
        return json_answer({"id": run.id, "line": line_of(run.words)})

    def _again(self, captions: RunCaptions, given: dict[str, Json]) -> QueuedRun:
        named, changes = given.get("keys"), given.get("values")
        if not isinstance(named, list) or not isinstance(changes, dict) or len(named) > MOST:
            raise EditRefused(f"choose 1 to {MOST} captions")
        keys = [str(key) for key in named]
        paths = [path for path, *_ in captions.paths(keys).values()]
        refuse_links(captions.out / FOLDER)
        out = captions.out / FOLDER / secrets.token_hex(8)
        command = self._studio.command(captions.out)
        words = command.again(checked(changes, self._studio.roots), paths, out)
        run = QueuedRun(kind=AGAIN, out=str(out), words=words, folder=str(command.folder))
        run.of, run.values, run.about = str(captions.out), changes, keys
        return self._studio.queue.add(run)

    def _add(
        self, kind: Kind, command: RecordedCommand, words: list[str], out: Path, of: str = ""
    ) -> QueuedRun:
        folder = str(command.folder)
        run = QueuedRun(kind=kind, out=str(out), words=words, folder=folder, of=of)
        return self._studio.queue.add(run)

    async def answers(self, request: Request) -> Response:
        return json_answer(await asyncio.to_thread(self._answers, self._captions(request)))

    def _answers(self, captions: RunCaptions) -> dict[str, Json]:
        again = list[Json]()
        for run in self._studio.queue.runs:
            if run.kind == AGAIN and run.about_out == captions.out:
                entry = {"id": run.id, "state": run.state, "error": run.error, "keys": run.about}
                try:
                    answers = answers_of(run, captions.paths(run.about))
                except (EditRefused, PenstockError):
                    answers = {}
                again.append({**entry, "values": run.values, "answers": answers})
        return {"again": again}

    async def write(self, request: Request) -> Response:
        """Put the same run into the queue once more, with other formats, or write texts at once."""
        written = await asyncio.to_thread(self._captions(request).write_texts)
        if written is not None:
            return json_answer({"written": written})
        return await self._queued(request, self._write)

    def _write(self, captions: RunCaptions, given: dict[str, Json]) -> QueuedRun:
        if not isinstance(given.get("format"), list):
            raise EditRefused("the formats are missing")
        values = checked(
            {name: given.get(name) for name in ("format", "trainer")}, self._studio.roots
        )
        command = self._studio.command(captions.out)
        words = command.writing(values.get("format", ()), values.get("trainer", ()))
        return self._add("write", command, words, captions.out)

    async def follow(self, request: Request) -> Response:
        """Put an export or a training of the run's model into the queue."""
        return await self._queued(request, self._follow)

    def _follow(self, captions: RunCaptions, given: dict[str, Json]) -> QueuedRun:
        kind: Kind = "tune" if given.get("command") == "tune" else "export"
        values = checked({"out": given.get("out")}, self._studio.roots)
        own = {"export": {"to": str(given.get("to"))}, "tune": {"data": str(captions.out / LINES)}}
        if given.get("command") not in own or "out" not in values:
            raise EditRefused("choose what to make, and its folder")
        command, out = self._studio.command(captions.out), values["out"]
        words = command.following(kind, {**own[kind], "out": out})
        return self._add(kind, command, words, Path(out), of=str(captions.out))

    async def learn(self, request: Request) -> Response:
        return await self._queued(request, self._learn)

    def _learn(self, captions: RunCaptions, _: dict[str, Json]) -> QueuedRun:
        command = self._studio.command(captions.out)
        words = ["learn", *command.trusted, str(captions.out)]
        return self._add("learn", command, words, captions.out)

    async def sets(self, request: Request) -> Response:
        """Return what trainers will see of the data sets in the run's folder."""
        captions = self._captions(request)

        def findings() -> list[dict[str, Json]]:
            edits, rows = captions.reviewed.edits(), captions.reviewed.folder.rows
            not_rejected = [key for key in rows if edits.get(key, UNTOUCHED).review != REJECTED]
            paths = captions.paths(not_rejected) if not_rejected else {}
            chunks = {(path or rows[key]["media_path"], at) for key, (path, at, _) in paths.items()}
            return sets_in(captions.out, len(not_rejected), Counter(path for path, _ in chunks))

        return json_answer({"sets": await asyncio.to_thread(findings)})

    async def seen(self, request: Request) -> Response:
        """Return the captions that a filter finds by what trainers do not see of them."""
        captions, wanted = self._captions(request), request.query_params.get("filter", "")
        trained = self._studio.trained if captions.out == self._studio.out else Trained()
        return json_answer(await asyncio.to_thread(captions.seen, wanted, trained))

    async def media(self, request: Request) -> Response:
        path = await self._local_path(request)
        if path is None:
            return json_answer({"error": "the file was moved or deleted"}, 404)
        kind = mimetypes.guess_type(path.name)[0] or ""
        # A folder may name any file: never serve one that a browser would run as a page.
        plain = kind.startswith(SHOWN) and kind != "image/svg+xml"
        return ShownFile(
            path,
            media_type=kind if plain else "application/octet-stream",
            content_disposition_type="inline",
            headers={"content-security-policy": "sandbox; default-src 'none'"},
        )

    async def small(self, request: Request) -> Response:
        """Return a thumbnail of a medium: of a video, its frame at `at` seconds."""
        path, at = await self._local_path(request), request.query_params.get("at", "")
        try:
            time = float(at) if at else None
        except ValueError:
            time = 0.0
        return await self._studio.thumbnails.answer(path, time)

    async def _local_path(self, request: Request) -> Path | None:
        """Return the local path of a medium, fetched if it is remote; None if it is gone."""
        captions, number = self._captions(request), request.path_params["number"]
        if not NUMBER.fullmatch(number):
            return None
        place = await asyncio.to_thread(captions.place, int(number))
        if not place:
            return None
        async with self._fetching:
            return await shown_file(place)
