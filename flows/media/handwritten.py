"""Finds texts that users wrote for media: non-blank `.txt` files that no run wrote. Writes nothing
and runs no model.

A text belongs to the medium with the same stem. It has one line per chunk, as the texts of a run
have. If the number of lines differs, the whole text applies to every chunk.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from artifacts.disk_names import one_name, rules_in
from artifacts.edits import FixedText
from artifacts.keys import DIGESTS, ContentDigests, content_key
from artifacts.names import Naming
from artifacts.plurals import counted
from artifacts.regular_files import link_out, read_bytes, user_text
from artifacts.store import Store
from flows.media.generated_files import GeneratedFiles, about, digest_at
from flows.media.media_files import kind_of
from flows.media.text_merging import MAX_BYTES, JoinedTexts, has_words, joined
from flows.options.formats import JOINED

FORM = "txt"


class HandwrittenTexts:
    """User-written texts, distinguished from the texts that runs of one store wrote."""

    def __init__(self, store: Store, out: Path) -> None:
        """`out`: folder of outputs, where texts of the user may lie, too."""
        self._out = out
        self.unread: dict[Path, str] = {}
        """Texts that are not read → why."""
        self._generated = GeneratedFiles(store, out=out)
        self._joined = JoinedTexts(self._generated, FORM)

    def of(self, places: Iterable[Path], digest: str, place: str) -> tuple[Path, str] | None:
        """Return the first user-written text among `places` for this content, with its path. Return
        None if there is none. `place`: where the medium lies."""
        for path in places:
            try:
                content = read_bytes(path, MAX_BYTES)
            except (OSError, ValueError):
                continue
            sha256, of = hashlib.sha256(content).hexdigest(), about(digest, path, place, self._out)
            # What a run wrote there about another medium is no text of a user, either.
            anyone = (*of, one_name(path))
            if self._generated.has_of_any_kind(FORM, sha256, anyone):
                continue
            root = self._out if path.is_relative_to(self._out) else path.parent
            if why := link_out(path, root):
                self.unread[path] = f"{why}; put a copy there if it is yours"
                continue
            try:
                text = user_text(content, path)
            except OSError as error:
                self.unread[path] = str(error.strerror)
                continue
            if self._joined.user_part((digest,), text) is None:  # or the caption is of this medium
                user_part = self._joined.user_part(of, text)
                text = text if user_part is None else user_part
            if text.strip() and not self._generated.is_of_another(FORM, text, of):
                return path, text
        return None

    def with_caption(self, text: str, digest: str, caption: str, rule: str) -> str:
        """Return a user's text joined with a caption by the rule of `--existing`."""
        part = self._joined.user_part((digest,), text)
        if rule not in JOINED or part is not None or has_words(text, caption):
            return text  # the caption is already there, or is not to be added
        return joined(text, caption, rule)[0].rstrip()

    def notes(self) -> Iterator[str]:
        """Yield a note on texts that are not read."""
        if self.unread:
            path, why = next(iter(self.unread.items()))
            yield f"not read: {counted(len(self.unread), 'text')} of users ({path}: {why})"


class TextRecords:
    """What runs of a store wrote beside media."""

    def __init__(self, store: Store) -> None:
        self._generated = GeneratedFiles(store)
        self._digests = ContentDigests(store.local / DIGESTS)

    def are_other(self, text: Path, medium: Path) -> bool:
        """Return whether a run wrote a text, and not about what its medium holds now. Raises
        OSError."""
        sha256 = digest_at(text, MAX_BYTES)
        place = (one_name(text), *about("", text, str(medium))[1:])
        if not self._generated.has_of_any_kind(FORM, sha256, place):
            return False
        return not self._generated.has_of_any_kind(FORM, sha256, (self._content(medium),))

    def around(self, text: Path, medium: Path) -> FixedText:
        """Return what a run put around the caption in the text of a medium. Raises OSError."""
        if not self._generated.puts_around:
            return FixedText()
        return self._generated.around((one_name(text), self._content(medium)))

    def _content(self, medium: Path) -> str:
        return content_key(self._digests.of(medium), kind_of(medium.name))


class TextsIn:
    """The texts in a folder of outputs, by names that its disk takes."""

    def __init__(self, out: Path) -> None:
        rules = rules_in(out)
        self._out = out
        self._fitting = Naming(lambda folder: rules).fitting
        self._spelled: dict[str, Path] = {}
        """Text → its path as the first medium spells it, whose text it is."""

    def of(self, media_path: Path, name: str) -> Iterator[Path]:
        """Yield the possible paths of a medium's text that are not another's."""
        for place in text_paths(media_path, name):
            path = self._out / f"{self._fitting(str(place.with_suffix('')))}{place.suffix}"
            if self._spelled.setdefault(one_name(path), path) == path:
                yield path


def split_by_chunk(text: str, chunks: int) -> list[str] | None:
    """Return one line per chunk if the text has exactly one line for each, else None."""
    for lines in (text.removesuffix("\n").split("\n"), text.rstrip().split("\n")):
        if len(lines) == chunks:
            return [line.strip() for line in lines]
    return None


def text_paths(path: Path, name: str = "") -> list[Path]:
    """Return the possible paths of a medium's text: the suffix added to the medium's suffix, or in
    its place. The `name` of a prompt stands before the suffix."""
    named = path.with_name(f"{path.stem}.{name}{path.suffix}") if name else path
    return [named.with_name(f"{named.name}.{FORM}"), named.with_suffix(f".{FORM}")]
