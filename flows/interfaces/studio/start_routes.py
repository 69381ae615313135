"""Routes for choosing, planning and running.

The page offers a choice of models on this machine, adapters and prompts.
"""

import asyncio
import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from artifacts.disk.files import write_text
from artifacts.disk.json_shapes import Json
from artifacts.disk.paths import user_state
from artifacts.disk.regular_files import log_end, read_bytes, user_text
from artifacts.errors import PenstockError, UsageError
from artifacts.remote.endpoints import SERVED, listed
from artifacts.texts.edits import read_edits, unused_note
from artifacts.texts.trainer_models import MODELS
from flows.commands.review.folder_captions import EditRefused
from flows.core.media.media_file import IMAGE_SUFFIXES, kind_of
from flows.core.options.commands import DEFAULT_MODEL
from flows.core.options.model import DEMO_MODEL
from flows.core.options.text import IMAGE_PROMPT
from flows.core.options.vectors import PLACE
from flows.core.pages.document import Document, served_page
from flows.interfaces.serve.refusals import json_answer
from flows.interfaces.studio import roots
from flows.interfaces.studio.answers_routes import answers_folder
from flows.interfaces.studio.guard import json_of
from flows.interfaces.studio.roots import Refused, Roots, is_shown
from flows.interfaces.studio.run_captions import choose, sifted_in
from flows.interfaces.studio.runs import QueuedRun, plan_of, run_id
from flows.interfaces.studio.session import UPLOADS, Studio
from flows.interfaces.studio.values import checked, line_of, model_name, table, words_of
from flows.outputs.record.run_record import RUN_RECORD
from stages.export import KINDS
from stages.models.hub.errors import cache_folder
from stages.models.hub.resolve import download_bytes

DEEPEST = 2
"""Folders below a root in which models and adapters are looked for."""
LOOKED_AT = 5000
"""Largest number of folders that are looked at."""
NAME = re.compile(r"[\w][\w -]{0,59}")
LONGEST = 1 << 16
PRESETS = {
    "describe": IMAGE_PROMPT,
    "one sentence": "Describe this in one sentence.",
    "tags": "List what is seen here as short tags, separated by commas.",
}
"""Prompts that are written as files when there are none."""
PURPOSES = {
    "to train a person": (
        "Describe the pose, the expression, the clothes, the place, the light and the framing. "
        "Say nothing about the face, the hair, the build and the age.",
        "What no caption says goes to the trigger word: so name all that changes from picture to "
        "picture, and nothing that makes this person.",
    ),
    "to train a style": (
        "Describe who or what is shown, where, and what happens. Say nothing about the medium, the "
        "technique, the colours, the style and the quality.",
        "A word for the look would take the look with it: with contents alone in the captions, the "
        "trigger word takes it.",
    ),
    "to train an object": (
        "Describe the angle of view, the light, the background, what is near the object, and how "
        "large it appears. Say nothing about its shape, material, colours and markings.",
        "The object is the same in every picture, so words are for what surrounds it: that can be "
        "changed later, and the object stays.",
    ),
    "to train a motion": (
        "Describe the one thing that happens, in the order of time, then how the camera moves, "
        "then the light. Say nothing about quality.",
        "A motion is learned from words in its order, and some trainers take a part of a clip at "
        "random: cut clips so that each has one event.",
    ),
}
"""Name → a prompt for captions to train on, and why it is so. A file of this name replaces it."""


def models_in(roots: Roots) -> dict[str, list[str]]:
    """Return the models and the adapters on this machine that the page may name."""
    cached = cache_folder().glob("models--*/snapshots/*/config.json")
    ids = (config.parents[2].name.removeprefix("models--").replace("--", "/") for config in cached)
    models = [DEMO_MODEL, *sorted(ids)]
    adapters = []
    for folder in _folders(roots):
        if os.path.isfile(folder / "adapter_config.json"):
            adapters.append(str(folder))
        elif os.path.isfile(folder / "config.json"):
            models.append(str(folder))
    return {"models": models, "adapters": adapters}


def _folders(roots: Roots) -> Iterator[Path]:
    level, count = list(roots.folders), 0
    for _ in range(DEEPEST):
        following: list[Path] = []
        for folder in level:
            try:
                names = sorted(os.listdir(folder))
            except OSError:
                continue
            for path in (folder / name for name in names if not name.startswith(".")):
                count += 1
                if count > LOOKED_AT:
                    return
                if is_shown(path) and os.path.isdir(path) and not path.is_symlink():
                    yield path
                    following.append(path)
        level = following


def presets() -> list[dict[str, str]]:
    """Return the prompts that this user keeps as files, and those of PURPOSES, with why they are
    so. Raises UsageError, EnvironmentFault."""
    folder = preset_folder()
    if not folder.is_dir():
        for name, text in PRESETS.items():
            write_text(folder / f"{name}.txt", [text + "\n"])
    prompts = []
    for path in sorted(folder.glob("*.txt")):
        if NAME.fullmatch(path.stem) and path.is_file() and path.stat().st_size <= LONGEST:
            with contextlib.suppress(OSError):  # it is UTF-16, or no text
                text = user_text(read_bytes(path, LONGEST), path).strip()
                prompts.append({"name": path.stem, "text": text, "why": ""})
    own = {prompt["name"] for prompt in prompts}
    more = ((name, *of) for name, of in PURPOSES.items() if name not in own)
    return prompts + [{"name": name, "text": text, "why": why} for name, text, why in more]


def keep_preset(name: Json, text: Json) -> None:
    """Write a prompt into its file. Raises Refused, EnvironmentFault."""
    if not (isinstance(name, str) and NAME.fullmatch(name)):
        raise Refused("invalid name of a prompt", hint="Use letters, digits and spaces")
    if not (isinstance(text, str) and text.strip() and len(text) < LONGEST):
        raise UsageError("the prompt is empty or too long", hint="Write a text")
    write_text(preset_folder() / f"{name}.txt", [text.strip() + "\n"])


def preset_folder() -> Path:
    return user_state() / "prompts"


PAGE = "flows.interfaces.studio.page"
SHARED_SCRIPTS = ("base.js", "windowed.js", "asking.js", "choosing.js", "scene.js")
SCRIPTS = (
    *("asking.js", "saving.js", "cards.js", "panels.js"),
    *("files.js", "start.js", "runs.js", "page.js"),
)
"""Parts of the page's script, in their order, after those that it shares with other pages."""
PLAN_SECONDS = 300.0
COUNTED_AT_ONCE = 2
"""Folders whose media are counted at a time."""
THUMBNAIL_SECONDS = 1.0
"""Time of the frame of a video that stands for it."""
HUB_SECONDS = 10.0
"""Seconds to wait for the hub to state the size of a model."""
SIFTED = ("sources", "recursive", "extensions", "limit")
"""Options of a run that decide which files are marked."""


def page_of(proxy: str) -> Document:
    """Return the page. The page of a proxy, if there is one, may show it in a frame."""
    return served_page(
        "Penstock studio",
        PAGE,
        SHARED_SCRIPTS,
        SCRIPTS,
        img_src="'self' data:",
        media_src="'self' blob:",
        worker_src="blob:",
        **({"frame_ancestors": proxy} if proxy else {}),
    )


class StartRoutes:
    """The page, and what it needs until captions are made."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._page = page_of(studio.proxy)
        self._planning = asyncio.Lock()
        self._counting = asyncio.Semaphore(COUNTED_AT_ONCE)

    async def page(self, _: Request) -> Response:
        headers = {"content-security-policy": self._page.policy}
        return HTMLResponse(self._page.html, headers=headers)

    async def choices(self, _: Request) -> Response:
        studio = self._studio
        models = await asyncio.to_thread(models_in, studio.roots)
        return json_answer(
            {
                **models,
                "roots": [str(root) for root in studio.roots.offered],
                "folder": str(studio.folder),
                "out": str(studio.out),
                "own": run_id(studio.out),
                "has_answers": answers_folder(studio.out) is not None,
                "has_captions": os.path.isfile(studio.out / RUN_RECORD),
                "image_suffixes": sorted(IMAGE_SUFFIXES),
                "default_model": DEFAULT_MODEL,
                "prompts": await asyncio.to_thread(presets),
                "prompt_folder": str(preset_folder()),
                "options": table(),
                "servers": [server.url for server in listed()],
                "export_kinds": list(KINDS),
                "trainers": [model.label for of in MODELS.values() for model in of.values()],
            }
        )

    async def files(self, request: Request) -> Response:
        path = request.query_params.get("path", "") or str(self._studio.folder)
        return json_answer(await asyncio.to_thread(self._studio.roots.listing, path))

    async def below(self, request: Request) -> Response:
        """Return how many media are in a folder and in those below it."""
        path = request.query_params.get("path", "")
        async with self._counting:
            return json_answer(await asyncio.to_thread(self._studio.roots.media_below, path))

    async def small(self, request: Request) -> Response:
        """Return a thumbnail of an image or a video below the roots."""
        requested = request.query_params.get("path", "")
        path = await asyncio.to_thread(self._studio.roots.medium, requested)
        time = None if kind_of(path.name) == "image" else THUMBNAIL_SECONDS
        return await self._studio.thumbnails.answer(path, time)

    async def model(self, request: Request) -> Response:
        """Return how many bytes of a model have to be downloaded before it runs, or why it cannot
        be had; nothing is downloaded."""
        requested = request.query_params.get("name", "")
        name = await asyncio.to_thread(model_name, requested, self._studio.roots)
        own = name == DEMO_MODEL or name.startswith(SERVED) or os.path.isabs(name)
        try:
            size = 0 if own else await asyncio.to_thread(download_bytes, name, HUB_SECONDS)
        except PenstockError as error:
            return json_answer({"error": error.message, "hint": error.hint})
        return json_answer({"bytes": size})

    async def upload(self, request: Request) -> Response:
        name = request.query_params.get("name", "")
        folder = self._studio.out / UPLOADS
        place = await roots.upload(request.stream(), name, folder)
        return json_answer({"path": str(place), "folder": str(folder)})

    async def keep_preset(self, request: Request) -> Response:
        preset = await json_of(request)
        await asyncio.to_thread(keep_preset, preset.get("name"), preset.get("text"))
        return json_answer({"prompts": await asyncio.to_thread(presets)})

    async def _words(self, request: Request) -> tuple[dict[str, Any], list[str]]:
        values = (await json_of(request)).get("values")
        if not isinstance(values, dict):
            raise EditRefused("the values are missing")
        return await asyncio.to_thread(self._checked, values)

    def _checked(self, values: dict[str, Json]) -> tuple[dict[str, Any], list[str]]:
        options = checked(values, self._studio.roots)
        options.setdefault("out", str(self._studio.roots.inside(str(self._studio.out))))
        return options, words_of(options, self._studio.fixed)

    async def words(self, request: Request) -> Response:
        _, words = await self._words(request)
        return json_answer({"line": line_of(words)})

    async def plan(self, request: Request) -> Response:
        """Return the plan of values. One is made at a time, while its page waits for it."""
        values, words = await self._words(request)
        planning = asyncio.create_task(self._planned(words))
        gone = asyncio.ensure_future(request.receive())  # after the body: the page is gone
        gone.add_done_callback(lambda _: planning.cancel())
        try:
            plan = await planning
        except asyncio.CancelledError as error:
            raise ClientDisconnect from error
        finally:
            gone.cancel()
        note = await asyncio.to_thread(self._edits_note, Path(values["out"]), words)
        plan["notes"] = [*filter(None, [note]), *plan["notes"]]
        return json_answer({"plan": plan, "line": line_of(words)})

    def _edits_note(self, out: Path, words: list[str]) -> str:
        """Return which edits in a folder a run will not apply, because it changes what the last run
        asked; empty: it does not, or none are there."""
        with contextlib.suppress(PenstockError):
            if self._studio.command(out).asks_as(words):
                return ""
            edits = read_edits(out).unused(())
            return unused_note(edits, {path for path, _ in edits})
        return ""

    async def _planned(self, words: list[str]) -> dict[str, Any]:
        async with self._planning:
            return await plan_of(words, self._studio.folder, PLAN_SECONDS)

    async def begin(self, request: Request) -> Response:
        values, words = await self._words(request)
        folder, out = str(self._studio.folder), values["out"]
        run = QueuedRun(kind="caption", out=out, words=words, folder=folder, values=values)
        await asyncio.to_thread(self._studio.queue.add, run)
        return json_answer({"id": run.id, "run": run_id(out), "line": line_of(words)})

    async def sift(self, request: Request) -> Response:
        """Put a run that marks the chosen files into the queue."""
        values, _ = await self._words(request)
        out, keep = values["out"], {"keep": values["sift"]} if "sift" in values else {}
        sifted = {name: values[name] for name in SIFTED if name in values}
        place = os.path.join(out, PLACE)
        words = words_of({**sifted, **keep, "out": place}, self._studio.fixed, "sift")
        folder = str(self._studio.folder)
        run = QueuedRun(kind="sift", out=place, words=words, folder=folder, of=out)
        await asyncio.to_thread(self._studio.queue.add, run)
        return json_answer({"id": run.id, "line": line_of(words)})

    async def sifted(self, request: Request) -> Response:
        """Return the copies that a sift run found, and what it left out."""
        run = self._studio.queue.of(request.path_params["id"])
        return json_answer(await asyncio.to_thread(sifted_in, Path(run.out)))

    async def choose(self, request: Request) -> Response:
        """Note what a person decided of a file that a sift run marked."""
        body = await json_of(request)
        out = Path(self._studio.queue.of(request.path_params["id"]).out)
        words = str(body.get("path", "")), str(body.get("choice", ""))
        return json_answer(await asyncio.to_thread(choose, out, *words))

    async def runs(self, _: Request) -> Response:
        return json_answer({"runs": await asyncio.to_thread(self._runs)})

    def _runs(self) -> list[dict[str, Any]]:
        """Return all runs. Files out of the roots, such as a calibration's, are not named."""
        runs = self._studio.queue.to_json()
        for stage in (stage for run in runs for stage in (run["status"] or {}).get("stages", ())):
            latest = stage["latest"] or ""
            if latest and not self._studio.roots.holds(Path(os.path.realpath(latest))):
                stage["latest"] = ""
        return runs

    async def change(self, request: Request) -> Response:
        do = str((await json_of(request)).get("do", ""))
        await asyncio.to_thread(self._studio.queue.change, request.path_params["id"], do)
        return await self.runs(request)

    async def log(self, request: Request) -> Response:
        queue = self._studio.queue
        run = queue.of(request.path_params["id"])
        return PlainTextResponse(await asyncio.to_thread(log_end, queue.processes.log(run)))
