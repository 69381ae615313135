"""Checks that the files that determine a model's output are those that the run was planned with.

A plan stamps the files. Each process that loads them compares the stamps before and after.
Everything computed between two equal comparisons belongs to the digests of the plan. This costs one
`stat` per file.

Hard links (backups, exports) and `chmod` change a stamp, but no byte: the digest then decides.
While files are read, only hard links are taken so: a file may have been overwritten and put back.
"""

import contextlib
import fnmatch
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from artifacts.disk.stamps import ModelFileStamp, link_stamp_of, model_stamp_of
from artifacts.errors import ModelChanged
from artifacts.records.keys import hash_file

SMALL = ("*.json", "*.jinja", "*.txt", "*.model", "*.py", "tokenizer*", "*.ttf", "*.otf")
"""Patterns of the small files that loading a model reads. Processors use the fonts to write times
on frames."""
ALONG = (
    "LICEN[CS]E*", "[Ll]icen[cs]e*", "NOTICE*", "Notice*", "README*", "[Rr]eadme*", "USE_POLICY*",
)  # fmt: skip
"""Patterns of files that no loader reads, and that go along with a model wherever it goes."""
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack")
HINT = "Run the same command again, once nothing writes the model's files any more"
MAPS = Path("/proc/self/maps")


def is_read(name: str) -> bool:
    """Return whether loading a model reads a file of this name, weights excluded."""
    return not name.lower().endswith(WEIGHT_SUFFIXES) and any(
        fnmatch.fnmatch(name, pattern) for pattern in SMALL
    )


def small_names(folder: str | Path) -> list[str]:
    """Return the names of a model folder's files that loading reads, weights excluded. Raises
    OSError."""
    with os.scandir(folder) as entries:
        return sorted(child.name for child in entries if is_read(child.name) and child.is_file())


_digest_at = cache(lambda path, stamp: hash_file(Path(path)))
"""(path, stamp) → the digest of the file, which is read once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFiles:
    """The files that determine a model's output, as they were when the run was planned."""

    stamps: Mapping[str, ModelFileStamp] = field(default_factory=dict)
    """Path → stamp of its file, links followed."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """Path → SHA-256 of its file, if known."""
    links: Mapping[str, ModelFileStamp] = field(default_factory=dict)
    """Path that is a link → the link's own stamp."""
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Folder → names of all its files that loading reads, weights excluded. An added file would be
    read, too."""

    def with_others(self, other: "ModelFiles") -> "ModelFiles":
        """Return these files and those of another model."""
        return ModelFiles(
            stamps={**self.stamps, **other.stamps},
            digests={**self.digests, **other.digests},
            links={**self.links, **other.links},
            names={**self.names, **other.names},
        )

    def changed(self) -> ModelChanged | None:
        """Return the error that names the first changed file, or None."""
        change = self._change()
        return ModelChanged(f"{change} after this was planned", hint=HINT) if change else None

    def _change(self) -> str:
        for path, stamp in self.stamps.items():
            try:
                now, link_now = model_stamp_of(path), link_stamp_of(path)
                if now.hard_links != stamp.hard_links:
                    stamp = self._accepted(path, now)
                link = self.links.get(path)
                if link and link_now and link_now.is_relinked(link):
                    link_now = link
                if (now, link_now) != (stamp, link):
                    return f"{path} was changed or replaced"
            except FileNotFoundError:
                return f"{path} was removed"
            except OSError as error:
                return f"{path} cannot be read any more ({error.strerror})"
        for folder, names in self.names.items():
            with contextlib.suppress(OSError):
                if added := sorted({*small_names(folder)} - {*names}):
                    return f"{Path(folder) / added[0]} was added"
        return ""

    def _accepted(self, path: str, now: ModelFileStamp) -> ModelFileStamp:
        """Return the present stamp of a file if its bytes are those of the plan, else the plan's
        stamp. Raises OSError."""
        stamp, digest = self.stamps[path], self.digests.get(path)
        if digest is None:  # only headers are read, for a profile whose key has size and time
            return now if now.is_relinked(stamp) else stamp
        return now if now.is_touched(stamp) and _digest_at(path, now) == digest else stamp

    def check(self) -> None:
        """Raise ModelChanged if any file has changed."""
        if (changed := self.changed()) is not None:
            raise changed

    @contextlib.contextmanager
    def compared(self) -> Iterator[None]:
        """Check the files before and after a block that reads them. If the block fails and a file
        has changed, the change is reported as the cause. Raises ModelChanged."""
        files = self
        with contextlib.suppress(OSError):  # `check` names the file
            stamps = {path: self._accepted(path, model_stamp_of(path)) for path in self.stamps}
            files = replace(self, stamps=stamps)
        files.check()
        try:
            yield
        except Exception as error:
            if (changed := files.changed()) is not None:
                raise changed from error
            raise
        files.check()

    def are_mapped(self) -> bool:
        """Return whether this process has mapped any of them, and so continues to read them."""
        if not self.stamps:
            return False
        try:
            mapped = MAPS.read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return True
        return any(f" {os.path.realpath(path)}\n" in mapped for path in self.stamps)
