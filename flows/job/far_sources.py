"""Finds the media that addresses mean, in buckets and on the web; fetches none of them."""

import glob
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath

from artifacts.captions import Failure
from artifacts.errors import Unanswered
from artifacts.remote.addresses import FarFile, is_web, name_in, unsigned
from artifacts.remote.keeping import copy_of
from flows.job.media_files import MediaFile, Selection, kind_of, source_failure, writable
from flows.job.source_lists import LIST_SUFFIXES

AT_ONCE = 32
"""Addresses that are asked for at the same time."""
MISSING = "nothing is at this address"
MISSING_HINT = "Check the address, and who may read it; a folder of a bucket may be empty"
LIST_HINT = "Copy the list to this machine, and give @LIST: its lines may be addresses"


class FarSources:
    """What addresses mean; each is asked for once."""

    def __init__(self) -> None:
        self._found: dict[str, FarFile | FileNotFoundError | Unanswered] = {}

    def ask(self, addresses: Iterable[str]) -> None:
        """Ask for many at once, so that the answers are there when they are wanted. Raises
        UsageError, and EnvironmentFault where a bucket cannot be read."""
        new = list(dict.fromkeys(each for each in addresses if each not in self._found))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            self._found |= zip(new, pool.map(_look, new), strict=True)

    def expand(
        self, address: str, source: str, selection: Selection
    ) -> Iterator[MediaFile | Failure]:
        """Yield what an address means: an object, or what is in a folder of a bucket, or matches a
        pattern there. Raises UsageError and EnvironmentFault."""
        if PurePosixPath(name_in(address)).suffix.lower() in LIST_SUFFIXES:
            message = "a list is read from this machine alone"
            yield source_failure(source, unsigned(address), "list", message, LIST_HINT)
            return
        if not address.endswith("/") or is_web(address):
            self.ask([address])
            found = self._found[address]
            if isinstance(found, FarFile):
                yield _taken(found, found.name, source)
                return
            if isinstance(found, Unanswered):
                yield source_failure(
                    source, unsigned(address), "unreachable", found.message, found.hint
                )
                return
        yield from self._inside(address, source, selection)

    def _inside(
        self, address: str, source: str, selection: Selection
    ) -> Iterator[MediaFile | Failure]:
        from artifacts.remote.finding import far_files_below, far_files_matching

        count = 0
        if not is_web(address) and glob.has_magic(address):
            for far in far_files_matching(address):
                if selection.takes(far.name):
                    count += 1
                    yield _taken(far, far.name, source)
        elif not is_web(address):
            for name, far in far_files_below(address, selection.recursive):
                if selection.takes(name):
                    count += 1
                    yield _taken(far, name, source)
        if not count:
            yield source_failure(source, unsigned(address), "missing", MISSING, MISSING_HINT)


def _look(address: str) -> FarFile | FileNotFoundError | Unanswered:
    """Return what lies at an address, or why it cannot be had; of a bucket that cannot be read, all
    of the run depends on it."""
    from artifacts.remote.finding import far_file_at

    try:
        return far_file_at(address)
    except FileNotFoundError as error:
        return error
    except Unanswered as error:
        if not is_web(address):
            raise
        return error


def _taken(far: FarFile, name: str, source: str) -> MediaFile:
    return MediaFile(
        path=copy_of(far),
        media_path=writable(name),
        source=writable(unsigned(source)),
        kind=kind_of(far.name),
        far=far,
    )
