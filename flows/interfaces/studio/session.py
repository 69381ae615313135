"""What one studio works on: folders, queue, thumbnails, captions and token.

Thumbnails of media are records of the store, which `cache ls` lists and `cache gc` deletes first.

Its commands for what follows a run (asking again, writing data sets, exporting, tuning) repeat the
command that the run's record has, if this user ran it.
"""

import asyncio
import contextlib
import hashlib
import hmac
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

from starlette.responses import Response

from artifacts.digests import digest_of
from artifacts.disk.files import sweep
from artifacts.disk.json_shapes import Json
from artifacts.disk.signing import user_secret
from artifacts.disk.stamps import stamp_of
from artifacts.errors import PenstockError, UsageError
from artifacts.options import declared
from artifacts.records.packs import Record, RecordSet, packs
from artifacts.records.store import Store, local_folder, open_store, prepare_store
from artifacts.texts.trainer_models import models_named
from flows.commands.review.seen_captions import Trained
from flows.core.options.commands import RunOptions
from flows.core.options.model import SIZES
from flows.core.options.store import default_store
from flows.core.pipelines import THUMBNAILS
from flows.interfaces.serve.refusals import json_answer
from flows.interfaces.studio.roots import Refused, Roots
from flows.interfaces.studio.run_captions import RunCaptions
from flows.interfaces.studio.runs import QueuedRun, RunQueue, run_id
from flows.interfaces.studio.values import ALLOWED, CONFIGS, OPTIONS, REPEATED, words_of
from flows.outputs.folder.trust import command_in
from flows.outputs.media_rows import media_with_captions
from flows.outputs.record.recorded_command import moved_with, repeated, with_values
from flows.outputs.thumbnails import QUALITY, SIDE, thumbnail

FOLDER = ".again"
"""Folder of the answers to a second question, in a run's folder."""
MOST = 500
"""Largest number of captions that get a second question at once."""
NOT_AGAIN = (
    *("sources", "out", "format", "beside", "existing", "media", "recursive", "extensions"),
    *("limit", "sift", "summary", "summary_prompt", "trigger", "prefix", "suffix", "retry_failed"),
    "check_media",
)
"""Options that a second question does not take from its run."""
CHANGED = (
    *("prompt", "temperature", "top_p", "seed", "adapter", "model", "length", "system"),
    *("max_new_tokens", "repetition_penalty"),
)
"""Options that a second question may change."""
ConfigOf = Callable[[Sequence[str]], RunOptions]
"""Parses the words of a `caption` command."""


class RecordedCommand:
    """The command of the last run into a folder, which this user ran, or trusts."""

    def __init__(
        self, out: Path, config_of: ConfigOf, store: str = "", *, trust: bool = False
    ) -> None:
        """Read it. `store` and `trust` are as in `belief_in`. Raises UsageError,
        EnvironmentFault."""
        self._out, command = out, command_in(out, store, trust=trust)
        self._recorded, self.folder = repeated(command.words), Path(command.folder)
        self.trusted = ["--trust-folder"] if trust else []
        """Words of a command into the folder, if a person trusts it in this session."""
        self._config_of = config_of

    @cached_property
    def words(self) -> list[str]:
        """Words that repeat the command into the folder, and find an adapter in it, where that is
        now."""
        config = self._config_of(self._recorded)
        named = getattr(config, "adapter", None)
        before, adapter = self.folder / str(getattr(config, "out", "")), self.folder / str(named)
        moved, values = moved_with(adapter, before, self._out), dict[str, str]()
        if named and moved != adapter:
            values["--adapter"] = str(moved)
        if os.path.realpath(before) != os.path.realpath(self._out):
            values["--out"] = str(self._out)
        return with_values(self._recorded, values) if values else self._recorded

    @cached_property
    def _config(self) -> RunOptions:
        return self._config_of(self.words)

    def asks_as(self, words: Sequence[str]) -> bool:
        """Return whether another command asks the same model the same question."""
        other = self._config_of(words)
        return all(getattr(other, n) == getattr(self._config, n) for n in (*CHANGED, "prompts"))

    def writing(self, formats: Sequence[str], trainers: Sequence[str] = ()) -> list[str]:
        """Return the words that write these formats, too, and the data sets of trainers, each set
        for a model, into the folder, which may have been moved since. Raises UsageError for what
        there is not."""
        more: dict[str, str] = {}
        if trainers:
            models_named(trainers)
            names = (*self._config.groups.data_sets.trainer, *trainers)
            by_trainer = {name.partition(":")[0]: name for name in names}
            more["--trainer"] = ",".join(by_trainer.values())
        if formats:
            more["--format"] = ",".join(
                dict.fromkeys((*self._config.groups.outputs.format, *formats))
            )
        words = with_values(self.words, {**more, "--out": str(self._out)})
        self._config_of(words)
        return [*words[:1], *self.trusted, *words[1:]]

    def following(self, command: str, values: Mapping[str, Json]) -> list[str]:
        """Return the words that export or tune this run's model, with these values. Raises
        UsageError."""
        config = self._config
        options = {declaration.name for declaration in declared(CONFIGS[command])}
        own = self._given(n for n in ("revision", "adapter", "memory") if n in options)
        values = {"model": config.model, **values, **own}
        return words_of(values, [f"--store={config.store_url}"], command)

    def _given(self, names: Iterable[str]) -> dict[str, Json]:
        """Return the values of these options that are not their defaults, as the page has them."""
        changed = {}
        for name in names:
            value, field = getattr(self._config, name), OPTIONS[name].field
            default = field.default_factory() if callable(field.default_factory) else field.default
            if value != default:
                changed[name] = str(value) if name in SIZES else value
        return changed

    def again(self, changes: Mapping[str, Json], paths: Sequence[str], out: Path) -> list[str]:
        """Return the words that ask again about these media, with changed options. Raises Refused
        for another change."""
        if unknown := [name for name in changes if name not in (*CHANGED, "sources")]:
            raise Refused(f"{unknown[0][:40]!r} cannot be changed here", hint="Start another run")
        values = self._given((ALLOWED | REPEATED) & OPTIONS.keys() - {*NOT_AGAIN})
        if changes.get("prompt"):
            values.pop("prompts", None)
        values |= {**changes, "sources": (*dict.fromkeys(paths),), "out": str(out)}
        return words_of(values, [f"--store={self._config.store_url}"])


def answers_of(run: QueuedRun, paths: Mapping[str, tuple[str, float, str]]) -> dict[str, str]:
    """Return key of a caption → what the model answered the second time, to the prompt of that name
    or to a new one. `paths` has medium, start and name of the prompt of each of these captions."""
    folder = Path(run.out)
    try:
        media = media_with_captions(folder)
    except PenstockError:
        return {}
    texts = {
        (entry.path, round(row.start, 2), row.name): row.original or row.caption
        for entry, rows in media
        for row in rows
    }
    answers = {
        key: texts.get((path, round(start, 2), name), texts.get((path, round(start, 2), "")))
        for key, (path, start, name) in paths.items()
    }
    return {key: text for key, text in answers.items() if text is not None}


VERSION = 4
LIMIT_BYTES = 1 << 30
"""Largest size of all stored thumbnails; beyond it, the packs unused for longest are deleted."""
AT_ONCE = 2
TOGETHER = 32
"""Thumbnails that are stored as one pack. Fewer are stored when the page asks for no more."""
IDLE_SECONDS = 2.0


class Thumbnails:
    """Thumbnails of media, made once. A store that cannot be written keeps none."""

    def __init__(self, store: Store | None) -> None:
        """Keep them in a store; None: nowhere, for media that another person's folder names."""
        self._store = store
        self._records: RecordSet | None = None
        self._waiting: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._drawing = asyncio.Semaphore(AT_ONCE)

    async def answer(self, path: Path | None, time: float | None) -> Response:
        """Return the answer to a page that asks for a thumbnail; AT_ONCE are made at a time."""
        picture = None
        if path is not None:
            async with self._drawing:
                picture = await asyncio.to_thread(self.get, path, time)
        if picture is None:
            return json_answer({"error": "no thumbnail of this file"}, 404)
        headers = {"cache-control": "private, max-age=600"}
        return Response(picture, media_type="image/jpeg", headers=headers)

    def get(self, path: Path, time: float | None) -> bytes | None:
        """Return the JPEG of an image, or of a video at a time; None if none can be made."""
        if self._store is None:
            return thumbnail(path, time)
        try:
            key = digest_of([str(path), *stamp_of(path), str(time), SIDE, QUALITY])
        except OSError:
            return None
        with self._lock:
            if self._records is None:
                self._records = RecordSet(self._store, THUMBNAILS, digest_of([THUMBNAILS, VERSION]))
            if key in self._waiting:
                return self._waiting[key]
            records = self._records
        try:
            if key in records:
                return bytes(records.read(key).payload)
        except PenstockError:
            pass  # damaged: made again
        picture = thumbnail(path, time)
        if picture is not None:
            self._keep(key, picture)
        return picture

    def _keep(self, key: str, made: bytes) -> None:
        with self._lock:
            self._waiting[key] = made
            if self._timer is not None:
                self._timer.cancel()
            wait = 0.0 if len(self._waiting) >= TOGETHER else IDLE_SECONDS
            self._timer = threading.Timer(wait, self.flush)
            self._timer.daemon = True
            self._timer.start()

    def flush(self) -> None:
        """Store the thumbnails that were made since the last time."""
        with self._lock:
            pictures, records = dict(self._waiting), self._records
        if not pictures or records is None:
            return
        with contextlib.suppress(PenstockError, OSError):  # a full disk: they are made again
            prepare_store(records.store)
            records.publish([Record(key=key, payload=jpeg) for key, jpeg in pictures.items()])
            known = records.keys()
            if sum(records.place(key).length for key in known) > LIMIT_BYTES:
                shrink(records)
        with self._lock:
            for key in pictures:
                self._waiting.pop(key, None)


def shrink(records: RecordSet) -> None:
    """Delete the packs of thumbnails unused for longest, until a quarter of LIMIT_BYTES is free.
    Raises EnvironmentFault."""
    thumbnails = [pack for pack in packs(dict(records.store.stats())) if pack.kind == THUMBNAILS]
    left = sum(pack.stat.size for pack in thumbnails)
    for pack in sorted(thumbnails, key=lambda pack: pack.stat.modified):
        if left <= LIMIT_BYTES * 3 // 4:
            break
        records.store.delete(pack.name)
        left -= pack.stat.size
    records.refresh()


UPLOADS = "uploads"
"""Folder of dropped files, in the output folder."""
WORD = 32
"""Characters of the studio's token."""


def token_of(out: Path) -> str:
    """Return the token of a folder's studio. It is stable, so that an open page continues after a
    restart of the server. Raises EnvironmentFault."""
    name = b"studio " + os.fsencode(os.path.realpath(out))
    return hmac.new(user_secret(), name, hashlib.sha256).hexdigest()[:WORD]


@dataclass(kw_only=True, slots=True)
class Studio:
    """What one studio works on."""

    folder: Path
    """Folder of media; commands run in it."""
    out: Path
    """Output folder of runs, with the queue."""
    store: str
    """Store that was given at start; empty: the default."""
    config_of: ConfigOf
    more_roots: Sequence[str] = ()
    order: str = "source"
    """Order in which captions are shown at first."""
    trust: bool = False
    """Whether a person trusts what others wrote into `out`."""
    keeps_thumbnails: bool = True
    proxy: str = ""
    """Origin of the proxy through which browsers reach the page; empty: there is none."""
    trained: Trained = field(default_factory=Trained)
    """What is trained on the captions of `out`."""
    roots: Roots = field(init=False)
    queue: RunQueue = field(init=False)
    thumbnails: Thumbnails = field(init=False)
    token: str = field(init=False)
    captions: dict[str, RunCaptions] = field(default_factory=dict)
    """Id of a run's folder → its captions."""

    def __post_init__(self) -> None:
        url = self.store or default_store()
        local = local_folder(url)
        places: list[str | Path] = [self.folder, self.out, *self.more_roots]
        self.roots = Roots(places, [local] if local is not None else [])
        self.thumbnails = Thumbnails(open_store(url) if self.keeps_thumbnails else None)
        self.token = token_of(self.out)
        self.queue = RunQueue(self.out, self._before)
        if not self.queue.refusal and not (self.out / UPLOADS).is_symlink():
            sweep(self.out / UPLOADS)  # of a killed server

    @property
    def fixed(self) -> list[str]:
        """Return the words of every command that the page does not choose."""
        return [f"--store={self.store}"] if self.store else []

    def of(self, name: str) -> RunCaptions:
        """Return the captions of a run by its id in addresses. Raises UsageError."""
        known = {run_id(run.about_out): run.about_out for run in self.queue.runs}
        out = {**known, run_id(self.out): self.out}.get(name)
        if out is None:
            raise UsageError("there is no such run", hint="Choose another one")
        if name not in self.captions:
            learning = partial(self.queue.is_learning, out)
            self.captions[name] = RunCaptions(
                out, self.order, learning, store=self.store, trust=self._trusts(out)
            )
        return self.captions[name]

    def command(self, out: Path) -> RecordedCommand:
        """Return the command that a folder's record has. Raises UsageError, EnvironmentFault."""
        return RecordedCommand(out, self.config_of, self.store, trust=self._trusts(out))

    def _trusts(self, out: Path) -> bool:
        return self.trust and out == self.out

    def read_ahead(self) -> None:
        """Read the captions of the output folder, if there are any."""
        with contextlib.suppress(PenstockError):
            _ = self.of(run_id(self.out)).reviewed

    def _before(self, run: QueuedRun) -> None:
        if (captions := self.captions.get(run_id(run.out))) is not None:
            captions.follow_learning()

    def close(self) -> None:
        """Close the queue and the journals. Runs go on."""
        self.queue.close()
        self.thumbnails.flush()
        for captions in self.captions.values():
            captions.close()
