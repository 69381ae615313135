"""Writes one text file a medium, in `OUT` or beside the media; runs no model. Texts that we wrote
are brought to what is said now; what people wrote or edited is theirs.

A text is known for ours by its own digest and that of the medium that it is about, so it stays ours
when a folder is moved or another `OUT` is given.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from artifacts.captions import Caption
from artifacts.files import write_text
from artifacts.keys import hash_file
from artifacts.names import SUFFIXES, file_stems
from artifacts.shards import DATASET
from artifacts.subtitles import WRITERS
from artifacts.words import counted
from flows.job.own_files import OwnFiles
from flows.job.prepare import Job
from flows.job.sources import MediaFile
from flows.job.tasks import Medium

NOT_TEXTS = ("logs", DATASET)
"""Folders of `OUT` that hold no text of a medium."""

CaptionsOf = Callable[[Job, MediaFile, Medium], list[Caption]]


@dataclass(kw_only=True, slots=True)
class Texts:
    """The fate of the files of one form in one place."""

    form: str
    beside: bool
    """Whether they lie next to the media."""
    written: int = 0
    """Files that hold what is said now."""
    kept: list[str] = field(default_factory=list)
    """Names of those that people wrote or edited."""
    earlier: int = 0
    """Files of ours of an earlier run, about media of which not all is said now."""
    others: int = 0
    """Files of that form in `OUT` that are about no medium of this run."""

    def to_json(self) -> dict[str, Any]:
        """Return the counts, as `run.json` keeps them."""
        return {
            "format": self.form,
            "beside": self.beside,
            "written": self.written,
            "kept": len(self.kept),
            "earlier": self.earlier,
            "others": self.others,
        }

    def notes(self) -> Iterator[str]:
        """Yield what a person should know of them."""
        noun = f".{self.form} file"
        if self.kept:
            first = ", ".join([*self.kept[:3], *(["…"] if len(self.kept) > 3 else [])])
            yield (
                f"kept as people wrote or edited them: {counted(len(self.kept), noun)} ({first}); "
                "--overwrite replaces them"
            )
        if self.earlier and self.beside and not self.written:
            yield (
                f"of an earlier run: {counted(self.earlier, noun)} beside the media; "
                f"--format {self.form} --beside writes them anew"
            )
        elif self.earlier:
            yield f"of an earlier run: {counted(self.earlier, noun)}, not all is captioned yet"
        if self.others:
            yield f"about nothing in this run: {counted(self.others, noun)} in the same folder"


def write_texts(job: Job, own: OwnFiles, captions_of: CaptionsOf) -> list[Texts]:
    """Bring text files to what is said now: those asked for, and ours in `OUT`. Of others beside
    the media it is told how many are of an earlier run."""
    found: list[Texts] = []
    for beside in (False, True):
        asked = job.config.format if job.config.beside == beside else ()
        if not own and not set(asked) & set(WRITERS):
            continue
        stems = _stems(job, beside)
        there = _texts_in({os.path.dirname(stem) for stem in stems})
        for form in WRITERS:
            writer = _Writer(job, own, Texts(form=form, beside=beside), stems)
            if form in asked or (not beside and writer.has_own(there)):
                found.append(writer.write(captions_of))
            elif beside and writer.count_stale(captions_of, there):
                found.append(writer.texts)
    return found


def _texts_in(folders: Set[str]) -> set[str]:
    """Return paths of what lies in these folders and is called as our texts are. To list a folder
    takes as long as to look for one file in it."""
    found: set[str] = set()
    for folder in folders:
        with contextlib.suppress(OSError):
            names = (name for name in os.listdir(folder) if name.endswith(SUFFIXES))
            found.update(os.path.join(folder, name) for name in names)
    return found


class _Writer:
    """A writer of the files of one form in one place."""

    def __init__(self, job: Job, own: OwnFiles, texts: Texts, stems: list[str]) -> None:
        self._job = job
        self._own = own
        self.texts = texts
        self._paths = [Path(f"{stem}.{texts.form}") for stem in stems]

    def has_own(self, there: Set[str]) -> bool:
        """Return whether any of them is among those, and ours."""
        pairs = zip(self._paths, self._job.contents, strict=True)
        present = ((path, medium) for path, medium in pairs if str(path) in there)
        return any(self._is_own(medium, digest_at(path)) for path, medium in present)

    def write(self, captions_of: CaptionsOf) -> Texts:
        """Bring them to what is said now."""
        for path, medium, text in self._said(captions_of):
            before = digest_at(path)
            if text is None:
                self.texts.earlier += self._is_own(medium, before)
                continue
            sha256 = hashlib.sha256(text).hexdigest()
            same = before == sha256
            theirs = os.path.lexists(path) and not same and not self._is_own(medium, before)
            if path.is_dir() or (theirs and not self._job.config.overwrite):
                self.texts.kept.append(path.name)
                continue
            self.texts.written += 1
            self._own.add(self.texts.form, medium.digest, sha256)
            if not same:
                write_text(path, [text.decode()])
        if not self.texts.beside:
            self.texts.others = self._count_others()
        return self.texts

    def count_stale(self, captions_of: CaptionsOf, there: Set[str]) -> int:
        """Count those that are ours and say something else than what is said now."""
        for path, medium, text in self._said(captions_of, there):
            before = digest_at(path)
            same = text is not None and before == hashlib.sha256(text).hexdigest()
            self.texts.earlier += not same and self._is_own(medium, before)
        return self.texts.earlier

    def _said(
        self, captions_of: CaptionsOf, only: Set[str] | None = None
    ) -> Iterator[tuple[Path, Medium, bytes | None]]:
        """Yield what each file, or each of `only` those, should hold. It is None where not all of a
        medium is captioned, since half a text would look like a whole one."""
        job = self._job
        for path, file, medium in zip(self._paths, job.files, job.contents, strict=True):
            if only is not None and str(path) not in only:
                continue
            captions = captions_of(job, file, medium)
            wanted = sum(not job.ledger.lost(task) for task in job.ledger.tasks([medium]))
            text = None
            if captions and len(captions) >= wanted:
                lines = "".join(WRITERS[self.texts.form](captions))
                text = lines.encode("utf-8", errors="replace")
            yield path, medium, text

    def _is_own(self, medium: Medium, sha256: str) -> bool:
        return self._own.has(self.texts.form, medium.digest, sha256)

    def _count_others(self) -> int:
        ours, count = {str(path) for path in self._paths}, 0
        for folder, names, files in os.walk(self._job.out):
            names[:] = [name for name in names if name not in NOT_TEXTS]
            of_form = (name for name in files if name.endswith(f".{self.texts.form}"))
            count += sum(os.path.join(folder, name) not in ours for name in of_form)
        return count


def digest_at(path: Path) -> str:
    """Return the SHA-256 of what lies there; empty where that is no file that can be read."""
    try:
        return hash_file(path) if path.is_file() else ""
    except OSError:
        return ""


def _stems(job: Job, beside: bool) -> list[str]:
    """Return the path without suffix of each file's text, absolute."""
    if not beside:
        names = [_named(file.media_path, file.name) for file in job.files]
        return [f"{job.out}/{stem}" for stem in file_stems(names)]
    # A file that two sources name is one file, but with two prompts it has two texts.
    files = zip(job.files, job.contents, strict=True)
    both = [(_named(str(file.path), file.name), m.prompt) for file, m in files]
    each = list(dict.fromkeys(both))
    stems = dict(zip(each, file_stems([path for path, _ in each]), strict=True))
    return [stems[one] for one in both]


def _named(path: str, name: str) -> str:
    """Return the path of a medium as if the name of a prompt were in it: `a.short.mp4`."""
    suffix = PurePosixPath(path).suffix
    return f"{path.removesuffix(suffix)}.{name}{suffix}" if name else path
