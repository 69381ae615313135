"""The items of a run: the contents to be captioned, and their chunks with one cache key
per stage.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from artifacts.keys import item_key
from artifacts.schema import ChunkIndex, MediaIndex
from artifacts.stamps import Stamp
from artifacts.tiles import OFF, Box, boxes_of
from flows.ledger.chunk_words import asked_of
from flows.ledger.namespaces import Variant

PREVIOUS = "{previous}"
"""Word in a prompt that stands for the caption of the chunk before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Medium:
    """One content to be captioned. Several files may have this content."""

    digest: str
    path: str
    kind: str
    prompt: str
    stamp: Stamp | None = None
    """State of the file when its content was digested."""

    @property
    def chained(self) -> bool:
        """Return whether its chunks are captioned one after the other."""
        return PREVIOUS in self.prompt


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One chunk with the cache keys of all stages in one variant."""

    medium: Medium
    chunk: ChunkIndex
    keys: Mapping[str, str]
    """Kind of records → key."""
    namespaces: Variant
    """The variant in which it was, or is to be, made."""
    prompt: str
    """What is asked of the chunk; while it waits, with the word for what is not there yet."""
    previous: str | None = ""
    """Caption of the chunk before, where the prompt asks for it; None: it is not there yet."""
    stored: ChunkIndex | None = None
    """The chunk with all of its stored frames, where fewer are shown; None: all are."""

    @property
    def whole(self) -> ChunkIndex:
        """Return the chunk with all of its stored frames."""
        return self.stored or self.chunk

    @property
    def waits(self) -> bool:
        """Return whether it is not known yet what it is asked."""
        return self.previous is None and self.medium.chained

    def __getitem__(self, kind: str) -> str:
        return self.keys[kind]

    @property
    def place(self) -> tuple[str, int, str]:
        """Return the chunk and its prompt, which name it however anything is made of it."""
        return (self.medium.digest, self.chunk.index, self.medium.prompt)

    @property
    def boxes(self) -> tuple[Box, ...]:
        """Return the parts that are looked at of a picture."""
        seen_at = self.namespaces.fit_image.edge
        return boxes_of(self.chunk.height, self.chunk.width, self.namespaces.tiles, seen_at)

    @property
    def is_cut(self) -> bool:
        """Return whether it is a picture of which parts are looked at, too."""
        return self.medium.kind == "image" and self.namespaces.tiles != OFF

    @property
    def levels(self) -> list[int]:
        """Return the level of each of its boxes."""
        return [box.level for box in self.boxes]

    @property
    def pictures(self) -> int:
        """Return how many pictures an encoder sees of it: frames, or parts of a picture."""
        return len(self.boxes) if self.is_cut else len(self.chunk.times)

    @property
    def shape(self) -> tuple[str, int, int, int]:
        """Return what the chunks of one batch have alike: (kind, pictures, height, width). The last
        two are of a picture as it is seen."""
        size = (self.chunk.height, self.chunk.width)
        if self.medium.kind == "image":
            size = self.namespaces.fit_image.size(*size)
        return (self.medium.kind, self.pictures, *size)


def task_of(
    medium: Medium,
    index: MediaIndex | None,
    chunk: ChunkIndex,
    namespaces: Variant,
    previous: str | None = "",
) -> Task:
    """Return a chunk of a medium with the keys of one variant; `index` is what was found in the
    medium, if it was looked at, and `previous` what was said of the chunk before."""
    bound = namespaces.bound if medium.kind == "video" else None
    shown = bound.shown(chunk) if bound else chunk
    # Of a chunk that waits the word itself stands in the key, by which nothing is ever made.
    asked = asked_of(medium.prompt, shown, namespaces.frames_a_video)
    asked = asked if previous is None else asked.replace(PREVIOUS, previous)
    words = index.words(namespaces.fit_image) if index is not None else ()
    fewer = () if shown is chunk else (f"{len(shown.times)} frames",)
    keys = {
        kind: item_key(
            namespace,
            medium.digest,
            chunk.index,
            *([asked] if kind in namespaces.prompted else []),
            *words,
            *(fewer if at else ()),  # the frames are stored as they always were
        )
        for at, (kind, namespace) in enumerate(namespaces.of.items())
    }
    return Task(
        medium=medium,
        chunk=shown,
        stored=None if shown is chunk else chunk,
        keys=keys,
        namespaces=namespaces,
        prompt=asked,
        previous=previous,
    )


def unique(tasks: Sequence[Task], kind: str) -> list[Task]:
    """Drop the tasks whose key came before: two files of one content are one item."""
    return list({task[kind]: task for task in reversed(tasks)}.values())[::-1]
