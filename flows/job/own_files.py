"""Remembers the texts that this program wrote for people, so that those are told from what people
wrote; writes none of them."""

from functools import cached_property

from artifacts.keys import digest_of
from artifacts.lines import append_line, read_lines
from artifacts.store import Store

DIGITS = 32
"""Hex digits by which a text is remembered: a million of them take 50 MB."""
OF_LABELS = "labels "
"""What texts are of that hold labels and no captions."""


class OwnFiles:
    """The own texts that were written for people, remembered in the store by digests."""

    def __init__(self, store: Store, of: str = "") -> None:
        """Remember texts `of` one kind; those of another, such as captions, are not its own."""
        self._memory = store.local / "written.jsonl"
        self._of = of

    @cached_property
    def _known(self) -> set[str]:
        return {str(line[0]) for line in read_lines(self._memory) if line}

    def __bool__(self) -> bool:
        return bool(self._known)

    def has(self, form: str, about: str, sha256: str) -> bool:
        """Return whether we once wrote a text of that digest, in this form, about this content."""
        return bool(sha256) and _key(self._of + form, about, sha256) in self._known

    def add(self, form: str, about: str, sha256: str) -> None:
        """Remember what is written, or about to be."""
        key = _key(self._of + form, about, sha256)
        if key not in self._known:
            self._known.add(key)
            append_line(self._memory, [key])


def _key(form: str, about: str, sha256: str) -> str:
    return digest_of([form, about, sha256])[:DIGITS]
