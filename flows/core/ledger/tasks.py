"""The items of a run: the contents to be captioned, and their chunks with one cache key
per stage.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from artifacts.disk.stamps import Stamp
from artifacts.records.eight_bits import computed_namespace
from artifacts.records.keys import item_key
from artifacts.schema import ChunkIndex, MediaKind
from artifacts.tiles import OFF, Box, boxes_of
from flows.core.ledger.namespaces import Variant
from flows.core.ledger.prompts import PREVIOUS, fill_placeholders
from flows.core.pipelines import SOUND_KINDS
from stages.sound import sound_key


@dataclass(frozen=True, kw_only=True, slots=True)
class Medium:
    """One content to be captioned. Several files may have this content."""

    digest: str
    path: str
    kind: MediaKind
    prompt: str
    """Its prompt, in which only placeholders of chunks are left."""
    stamp: Stamp | None = None
    """State of the file when its content was digested."""

    @property
    def uses_previous_caption(self) -> bool:
        """Return whether its chunks are captioned one after the other."""
        return PREVIOUS in self.prompt


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One chunk with the cache keys of all stages in one variant."""

    medium: Medium
    chunk: ChunkIndex
    keys: Mapping[str, str]
    """Record kind → cache key. A chunk without sound has none of the kinds that hold sound."""
    variant: Variant
    """Variant in which the records were made, or will be made."""
    prompt: str
    """Prompt of the chunk. Until the previous caption is known, it holds the placeholder."""
    previous: str | None = ""
    """Caption of the previous chunk if the prompt uses it; None: not known yet."""
    stored: ChunkIndex | None = None
    """The chunk with all stored frames if the model sees fewer; None: it sees all."""

    @property
    def whole(self) -> ChunkIndex:
        return self.stored or self.chunk

    @property
    def awaits_previous(self) -> bool:
        """Return whether the prompt still lacks the previous caption."""
        return self.previous is None and self.medium.uses_previous_caption

    def __getitem__(self, kind: str) -> str:
        return self.keys[kind]

    @property
    def seen(self) -> str:
        """Return the key of what a caption is made of: features, or frames that are sent."""
        return self.keys.get("features") or self.keys["frames"]

    @property
    def identity(self) -> tuple[str, int, str]:
        """Return medium, chunk index and prompt. They identify the task in every variant."""
        return (self.medium.digest, self.chunk.index, self.medium.prompt)

    @property
    def boxes(self) -> tuple[Box, ...]:
        """Return the crops of an image that the model sees."""
        seen_at = self.variant.fit_image.edge
        return boxes_of(self.chunk.height, self.chunk.width, self.variant.tiles, seen_at)

    @property
    def is_cut(self) -> bool:
        """Return whether the model sees crops of the image as well."""
        return self.medium.kind == "image" and self.variant.tiles != OFF

    def in_variant(self, variant: Variant) -> "Task":
        return task_of(self.medium, self.whole, variant, self.previous)

    @property
    def levels(self) -> list[int]:
        return [box.level for box in self.boxes]

    @property
    def images(self) -> int:
        """Return how many images the encoder gets: frames, or crops of an image."""
        return len(self.boxes) if self.is_cut else len(self.chunk.times)

    @property
    def shape(self) -> tuple[str, int, int, int]:
        """Return the properties that chunks of one batch share: (kind, images, height, width).
        Height and width are those that the model sees."""
        size = (self.chunk.height, self.chunk.width)
        if self.medium.kind == "image":
            size = self.variant.fit_image.size(*size)
        return (self.medium.kind, self.images, *size)


def task_of(medium: Medium, chunk: ChunkIndex, variant: Variant, previous: str | None = "") -> Task:
    """Return a chunk of a medium with the keys of one variant. `previous` is the caption of the
    previous chunk, if known."""
    bound = variant.bound if medium.kind == "video" else None
    shown = bound.shown(chunk) if bound else chunk
    # While the previous caption is unknown, the placeholder is part of the key. No record is made
    # by that key.
    template = variant.silent_prompts.get(medium.prompt, medium.prompt)
    prompt = fill_placeholders(template, shown, variant.frames_per_video, previous)
    fewer = () if shown is chunk else (f"{len(shown.times)} frames",)
    sent = ("as video",) if variant.sends_video and medium.kind == "video" else ()
    keys = {
        kind: item_key(
            computed_namespace(namespace),
            medium.digest,
            chunk.index,
            *([prompt] if kind in variant.prompted else []),
            *((*fewer, *sent) if at else ()),  # frames keep their key: all of them are stored
        )
        for at, (kind, namespace) in enumerate(variant.of.items())
        if kind not in SOUND_KINDS
    }
    for kind in SOUND_KINDS & variant.of.keys():
        keys[kind] = sound_key(computed_namespace(variant[kind]), medium.digest, chunk)
    return Task(
        medium=medium,
        chunk=shown,
        stored=None if shown is chunk else chunk,
        keys=keys,
        variant=variant,
        prompt=prompt,
        previous=previous,
    )


def keys_of(tasks: Iterable[Task], kind: str) -> set[str]:
    """Return the keys of the records of a kind that belong to these tasks."""
    return {task[kind] for task in tasks if kind in task.keys}


def unique(tasks: Sequence[Task], kind: str) -> list[Task]:
    """Drop tasks whose key occurred before: two files with equal content are one item."""
    return list({task[kind]: task for task in reversed(tasks)}.values())[::-1]
