"""What one studio works on: folders, queue, thumbnails, captions and token."""

import contextlib
import hashlib
import hmac
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from artifacts.errors import PenstockError, UsageError
from artifacts.files import sweep
from artifacts.signing import user_secret
from artifacts.store import open_store
from artifacts.store_folders import local_folder
from flows.options.model import default_store
from flows.studio.queued_run import QueuedRun
from flows.studio.roots import Roots
from flows.studio.run_captions import RunCaptions
from flows.studio.runs import RunQueue, run_id
from flows.studio.steps import ConfigOf, RecordedCommand
from flows.studio.thumbs import Thumbnails

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
    roots: Roots = field(init=False)
    queue: RunQueue = field(init=False)
    thumbnails: Thumbnails = field(init=False)
    token: str = field(init=False)
    captions: dict[str, RunCaptions] = field(default_factory=dict)
    """Id of a run's folder → its captions."""

    def __post_init__(self) -> None:
        url = self.store or default_store()
        local = local_folder(url)
        places: list[Path | str] = [self.folder, self.out, *self.more_roots]
        self.roots = Roots([*places, *([local] if local is not None else [])])
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
