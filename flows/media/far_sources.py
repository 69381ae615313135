"""Finds the media that addresses mean, in buckets and on the web; fetches none of them."""

import glob
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from artifacts.captions import Failure
from artifacts.errors import Unanswered, UsageError
from artifacts.remote.addresses import FarFile, is_web, name_in, names_folder, unsigned
from artifacts.remote.ahead import ahead
from artifacts.remote.keeping import UNREACHABLE, copy_path
from flows.media.media_files import MediaFile, Selection, kind_of, source_failure, writable
from flows.media.source_lists import LIST_SUFFIXES

AT_ONCE = 32
"""Addresses that are asked for at the same time."""
MISSING = "nothing is at this address"
WEB_HINT = "Check the address; what was there may have moved"
BUCKET_HINT = "Check the name, or add --recursive"
ODD = "this is no address that can be asked"
ODD_HINT = "See that it is spelt right: scheme, host, port, and no sign that an address cannot hold"
ODD_NAME = "an object of this name cannot be asked for"
ODD_NAME_HINT = "Rename it: no empty part between slashes, no . or .. and no control character"
ODD_FOLDER = "this folder cannot be listed, because of the name of an object in it"
LIST_HINT = "Copy the list to this machine, and give @LIST: its lines may be addresses"

Looked = FarFile | FileNotFoundError | Unanswered | UsageError
"""What lies at an address, or why it cannot be had."""


class FarSources:
    """What addresses mean; each is asked for once."""

    def __init__(self) -> None:
        self._found: dict[str, Looked] = {}

    def ask(self, addresses: Iterable[str]) -> None:
        """Ask for many at once, so that the answers are there when they are wanted. Raises
        UsageError, and EnvironmentFault where a bucket cannot be read."""
        new = list(dict.fromkeys(each for each in addresses if each not in self._found))
        self._found |= zip(new, ahead(_look, new, min(AT_ONCE, len(new))), strict=True)

    def expand(
        self, address: str, source: str, selection: Selection
    ) -> Iterator[MediaFile | Failure]:
        """Yield what an address means: an object, or what is in a folder of a bucket, or matches a
        pattern there. Raises UsageError and EnvironmentFault."""
        if PurePosixPath(name_in(address)).suffix.lower() in LIST_SUFFIXES:
            message = "a list is read from this machine alone"
            yield source_failure(source, unsigned(address), "list", message, LIST_HINT)
            return
        if not names_folder(address):
            self.ask([address])
            found = self._found[address]
            if isinstance(found, FarFile):
                yield _taken(found, found.name, source)
                return
            if isinstance(found, Unanswered | UsageError):
                kind = UNREACHABLE if isinstance(found, Unanswered) else "bad-address"
                why = found.message.removeprefix(f"{unsigned(address)} ")
                yield source_failure(source, unsigned(address), kind, why, found.hint)
                return
        yield from self._inside(address, source, selection)

    def _inside(
        self, address: str, source: str, selection: Selection
    ) -> Iterator[MediaFile | Failure]:
        from artifacts.remote.finding import far_files_below, far_files_matching

        inside: Iterable[tuple[str, FarFile | None]] = ()
        if not is_web(address) and glob.has_magic(address):
            inside = far_files_matching(address)
        elif not is_web(address):
            inside = far_files_below(address, selection.recursive)
        count = 0
        for name, far in inside:
            if far is None and name.endswith("/"):
                count += 1
                folder = "" if glob.has_magic(address) else f"{unsigned(address).rstrip('/')}/"
                place = folder + name.lstrip("/") or unsigned(address)
                yield source_failure(source, place, "bad-name", ODD_FOLDER, ODD_NAME_HINT)
            elif selection.takes(name):
                count += 1
                if far is None:
                    yield source_failure(source, name, "bad-name", ODD_NAME, ODD_NAME_HINT)
                else:
                    yield _taken(far, name, source)
        if not count:
            hint = WEB_HINT if is_web(address) else BUCKET_HINT
            yield source_failure(source, unsigned(address), "missing", MISSING, hint)


def _look(address: str) -> Looked:
    """Return what lies at an address, or why it cannot be had. Raises EnvironmentFault for a bucket
    that cannot be read, since all of the run depends on it."""
    from artifacts.remote.finding import far_file_at

    try:
        return far_file_at(address)
    except FileNotFoundError as error:
        return error
    except (UsageError, ValueError) as error:
        if isinstance(error, UsageError) and not is_web(address):
            raise
        return UsageError(ODD, hint=ODD_HINT)
    except Unanswered as error:
        if not is_web(address):
            raise
        return error


def _taken(far: FarFile, name: str, source: str) -> MediaFile:
    return MediaFile(
        path=copy_path(far),
        media_path=writable(name),
        source=writable(unsigned(source)),
        kind=kind_of(far.name),
        far=far,
    )
