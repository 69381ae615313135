"""What a run has to do: contents to be captioned, and the chunks of them with the keys of what each
stage makes; knows no store."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from artifacts.schema import ChunkIndex
from artifacts.stamps import Stamp
from flows.job.scopes import Scopes


@dataclass(frozen=True, kw_only=True, slots=True)
class Medium:
    """One content to be captioned; several files may hold it."""

    digest: str
    path: str
    kind: str
    prompt: str
    stamp: Stamp | None = None
    """Of the file when its content was digested."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One chunk with the keys of what each stage makes of it, or has made in another way."""

    medium: Medium
    chunk: ChunkIndex
    keys: Mapping[str, str]
    """Kind of records → key."""
    scopes: Scopes
    """The way it was, or is to be, made."""

    def __getitem__(self, kind: str) -> str:
        return self.keys[kind]

    @property
    def place(self) -> tuple[str, int, str]:
        """The chunk and its prompt, however anything is made of it."""
        return (self.medium.digest, self.chunk.index, self.medium.prompt)

    @property
    def shape(self) -> tuple[str, int, int, int]:
        """Chunks of one shape can share a batch: (kind, frames, height, width), the last two of a
        picture as it is seen."""
        size = (self.chunk.height, self.chunk.width)
        if self.medium.kind == "image":
            size = self.scopes.fit_image.size(*size)
        return (self.medium.kind, len(self.chunk.times), *size)


def unique(tasks: Sequence[Task], kind: str) -> list[Task]:
    """The tasks without those whose key came before: two files of one content are one item."""
    return list({task[kind]: task for task in reversed(tasks)}.values())[::-1]
