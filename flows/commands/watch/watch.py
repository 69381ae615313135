"""Looks at the media that a command names, and runs it in a child process when some are new.

1. A look lists the files of the sources, and takes those that nobody has written for `--min-age`.
2. If one of them was not there at the start of the last run, or was written since, the command
   runs. The run itself decides which files are away and which were deleted: a file that is gone
   starts none, and one that is back starts one.
3. A run that fails as a whole is repeated after a pause, which doubles each time up to a bound.
   Items that failed are not tried again: the command's own rules hold for them.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from artifacts.disk.mounts import DELETED, MissingFiles, noted_mounts
from artifacts.errors import PenstockError
from artifacts.texts.captions import Failure
from artifacts.wording import counted, first_of
from flows.commands.shared.parser import program
from flows.core.console.lines import duration, print_lines
from flows.core.job.young_files import is_young_at
from flows.core.media.media_file import MediaFile, Selection
from flows.core.media.sources import find_media
from flows.core.options.commands import RunOptions

LONGEST_PAUSE = 600.0
"""Longest pause in seconds after a run that failed."""
ENDED = (0, 1)
"""Exit codes of a run that did all that it could: what failed is in its list of failures."""
PR_SET_PDEATHSIG = 1
State = tuple[int | str, ...]
"""What changes when a file is written or replaced."""


@dataclass(kw_only=True, slots=True)
class Watch:
    """One command, and what its last runs have seen."""

    words: Sequence[str]
    """The command with its options."""
    config: RunOptions
    """Its options: the sources, `min_age` and the output folder."""
    every: float
    """Seconds between two looks."""
    seen: dict[str, State] = field(default_factory=dict)
    """Path or address of a file → its state at the start of the last run."""
    failed: int = 0
    """Number of runs in a row that failed."""
    mounts: dict[str, str] = field(default_factory=dict)
    """Mount points of the output folder, with their file systems, after the last run."""
    _unread: str = ""
    """Line about what could not be read."""

    def look(self) -> float:
        """Run the command if a file is new, and return the seconds until the next look."""
        resting = self.resting()
        new = [place for place, state in resting.items() if self.seen.get(place) != state]
        if not new:
            return self.every
        names = first_of([os.path.basename(place) for place in new])
        state = " new or changed" if self.seen else ""  # the first look cannot know
        print_lines(f"{counted(len(new), 'file')}{state} ({names})", to=sys.stderr)
        code = run(self.words)
        if code in ENDED:
            self.seen = resting
            self.mounts = noted_mounts({}, [self.config.out])
            self.failed = 0
            return self.every
        self.failed += 1
        pause = max(self.every, min(self.every * 2.0 ** min(self.failed, 20), LONGEST_PAUSE))
        ended = f"exit code {code}" if code >= 0 else f"signal {-code}"
        print_lines(f"the run ended with {ended}; again in {duration(pause)}", to=sys.stderr)
        return pause

    def resting(self) -> dict[str, State]:
        """Return the files of the sources that nobody has written for `min_age`, with their states.
        There are none while the disk of the output folder is away. What cannot be read is printed
        once, and looked for again."""
        selection = Selection(recursive=self.config.recursive, extensions=self.config.extensions)
        media, failures = list[MediaFile](), list[Failure]()
        if not (unread := self._away()):
            try:
                media, failures = find_media(self.config.sources, selection)
                unread = "".join(f"{f.media_path}: {f.message}" for f in failures[:1])
            except (PenstockError, OSError) as error:
                unread = f"{error}"
        if unread and unread != self._unread:
            print_lines(f"waiting for {unread}", to=sys.stderr)
        self._unread = unread
        now, min_age = time.time(), self.config.min_age or 0.0
        states = ((file.place, state_of(file, now, min_age)) for file in media)
        return {place: state for place, state in states if state is not None}

    def _away(self) -> str:
        """Return why a run would write beside its output folder, on the disk below its mount point;
        empty: it would not."""
        inside = os.path.join(os.path.abspath(self.config.out), "x")
        absence = MissingFiles(self.mounts).absence_of(inside, ())
        return (
            "" if absence is None or absence == DELETED else f"{absence.folder}: {absence.reason}"
        )


def state_of(file: MediaFile, now: float, min_age: float) -> State | None:
    """Return the state of a file; None if it is young, or gone by now."""
    if file.remote is not None:
        return file.remote.size, file.remote.version
    try:
        stat = os.stat(file.path)
    except OSError:
        return None
    if is_young_at(now, min_age, stat):
        return None
    return stat.st_size, stat.st_mtime_ns


def run(words: Sequence[str]) -> int:
    """Run the command in a child process, and return its exit code, or minus the signal that ended
    it. Interrupted, it stops the child in order and waits for it; interrupted again, at once."""
    child = subprocess.Popen(
        program(words),
        stdin=subprocess.DEVNULL,
        process_group=0,  # Ctrl-C reaches this process alone, which then stops the child once
        preexec_fn=stop_with_parent,
    )
    try:
        return child.wait()
    except KeyboardInterrupt:
        child.terminate()
        child.wait()
        raise
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()


def stop_with_parent() -> None:
    """Have the kernel stop this process in order when its parent is killed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
