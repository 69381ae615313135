"""Writes one text file per medium, in `OUT` or next to the media. Generated files are updated to
the present captions; files that a user wrote or edited are left alone. Runs no model.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from artifacts.captions import Caption
from artifacts.names import SUFFIXES, file_stems
from artifacts.shards import DATASET
from artifacts.subtitles import WRITERS
from artifacts.words import counted, first_of
from flows.job.prepare import Job
from flows.ledger.tasks import Medium
from flows.media.generated_files import GeneratedFiles, digest_at
from flows.media.media_files import MediaFile
from flows.media.text_merging import JoinedTexts
from flows.options.formats import JOINABLE, JOINED
from flows.options.text import OutputOptions
from flows.results.captions import unrejected


@dataclass(kw_only=True, slots=True)
class TextFileCounts:
    """Counts of the files of one format in one place, by outcome."""

    form: str
    beside: bool
    """Whether they lie next to the media."""
    written: int = 0
    """Files that hold the current text."""
    kept: list[str] = field(default_factory=list)
    """Names of those that people wrote or edited."""
    edited: list[str] = field(default_factory=list)
    """Names of those among them in which our part was edited, so that all of it is theirs."""
    people: int = 0
    """Files with words of people: kept ones, and those that hold what they corrected or wrote."""
    earlier: int = 0
    """Files of ours of an earlier run, about media of which not all is said now."""
    alike: list[str] = field(default_factory=list)
    """Names of media that have one stem, those of a stem in one entry."""
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
            yield (
                f"kept as people wrote or edited them: {counted(len(self.kept), noun)} "
                f"({first_of(self.kept)}); --overwrite replaces them"
            )
        if self.edited:
            yield (
                f"all of it theirs, since the caption in it was edited: "
                f"{counted(len(self.edited), noun)} ({first_of(self.edited)})"
            )
        if self.alike:
            yield (
                f"{first_of(self.alike)} differ only in their suffix: a trainer that looks for "
                "one .txt beside both, as sd-scripts does, cannot tell them apart, and finds none "
                "of theirs; rename them"
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


NOT_TEXTS = ("logs", DATASET)
"""Folders of `OUT` that hold no text of a medium."""

CaptionsOf = Callable[[Job, MediaFile, Medium], list[Caption]]


def write_texts(job: Job, own: GeneratedFiles, captions_of: CaptionsOf) -> list[TextFileCounts]:
    """Bring text files to what is said now: those asked for, and ours in `OUT`. Of others beside
    the media it is told how many are of an earlier run."""
    outputs = OutputOptions.of(job.config)
    found: list[TextFileCounts] = []
    for beside in (False, True):
        asked = outputs.format if outputs.beside == beside else ()
        if not own and not set(asked) & set(WRITERS):
            continue
        stems = text_stems(job, beside)
        there = _texts_in({os.path.dirname(stem) for stem in stems})
        for form in WRITERS:
            writer = _Writer(job, own, TextFileCounts(form=form, beside=beside), stems)
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
    """Writes the files of one format in one place."""

    def __init__(
        self, job: Job, own: GeneratedFiles, texts: TextFileCounts, stems: list[str]
    ) -> None:
        self._job = job
        self._own = own
        self.texts = texts
        self._joined = JoinedTexts(own, texts.form)
        self._paths = [Path(f"{stem}.{texts.form}") for stem in stems]

    def has_own(self, there: Set[str]) -> bool:
        """Return whether any of them is among those, and ours."""
        pairs = zip(self._paths, self._job.contents, strict=True)
        present = ((path, medium) for path, medium in pairs if str(path) in there)
        return any(self._is_own(path, medium) for path, medium in present)

    def write(self, captions_of: CaptionsOf) -> TextFileCounts:
        """Bring them to what is said now."""
        for path, medium, text, of_people in self._said(captions_of):
            if text is None:
                self.texts.earlier += self._is_own(path, medium)
            elif not text:
                self._drop(path, medium)
            elif self._bring(path, medium, text):
                self.texts.written += 1
                self.texts.people += of_people or self._is_joined(path, medium)
            else:
                self.texts.kept.append(path.name)
                self.texts.people += 1
        self.texts.edited = self._joined.edited
        if not self.texts.beside:
            self.texts.others = self._count_others()
        elif self.texts.form in JOINABLE:
            self.texts.alike = _alike(self._job)
        return self.texts

    def _bring(self, path: Path, medium: Medium, text: bytes) -> bool:
        """Bring one to what is said now by the rule; return whether it holds that."""
        config, form = self._job.config, self.texts.form
        outputs = OutputOptions.of(config)
        if outputs.rule in JOINED and form in JOINABLE and os.path.lexists(path):
            return self._joined.bring(path, medium.digest, text.decode(), outputs.rule)
        return self._own.bring(path, text, form, medium.digest, replace=outputs.replaces)

    def _drop(self, path: Path, medium: Medium) -> None:
        """Remove a text of which all was rejected, if it is ours."""
        if self._own.has(self.texts.form, medium.digest, digest_at(path)):
            path.unlink(missing_ok=True)

    def count_stale(self, captions_of: CaptionsOf, there: Set[str]) -> int:
        """Count those that are ours and say something else than what is said now."""
        for path, medium, text, _ in self._said(captions_of, there):
            same = text is not None and digest_at(path) == hashlib.sha256(text).hexdigest()
            self.texts.earlier += not same and self._is_own(path, medium)
        return self.texts.earlier

    def _said(
        self, captions_of: CaptionsOf, only: Set[str] | None = None
    ) -> Iterator[tuple[Path, Medium, bytes | None, bool]]:
        """Yield what each file, or each of `only` those, should hold, and whether any of it is a
        person's. It is empty where all of a medium was rejected, and None where not all of it is
        captioned, since half a text would look like a whole one."""
        job = self._job
        for path, file, medium in zip(self._paths, job.files, job.contents, strict=True):
            if only is not None and str(path) not in only:
                continue
            captions = captions_of(job, file, medium)
            wanted = sum(not job.ledger.has_failed(task) for task in job.ledger.tasks([medium]))
            text = None
            if captions and len(captions) >= wanted:
                kept = [*unrejected(captions)]
                text = "".join(WRITERS[self.texts.form](kept)).encode("utf-8", errors="replace")
            yield path, medium, text, any(c.original for c in unrejected(captions))

    def _is_own(self, path: Path, medium: Medium) -> bool:
        """Return whether what lies there is ours, or a part of it."""
        if self._own.has(self.texts.form, medium.digest, digest_at(path)):
            return True
        return self.texts.form in JOINABLE and self._joined.holds(path, medium.digest)

    def _is_joined(self, path: Path, medium: Medium) -> bool:
        """Return whether a text that was just brought holds a person's words, too."""
        joins = OutputOptions.of(self._job.config).rule in JOINED and self.texts.form in JOINABLE
        return joins and not self._own.has(self.texts.form, medium.digest, digest_at(path))

    def _count_others(self) -> int:
        ours, count = {str(path) for path in self._paths}, 0
        for folder, names, files in os.walk(self._job.out):
            names[:] = [name for name in names if name not in NOT_TEXTS]
            of_form = (name for name in files if name.endswith(f".{self.texts.form}"))
            count += sum(os.path.join(folder, name) not in ours for name in of_form)
        return count


def _alike(job: Job) -> list[str]:
    """Return the names of files that differ only in their suffix, those of a stem in one entry."""
    found: dict[Path, dict[str, None]] = {}
    for file in job.files:
        found.setdefault(file.path.with_suffix(".txt"), {})[file.path.name] = None
    return [" and ".join(names) for names in found.values() if len(names) > 1]


def text_stems(job: Job, beside: bool) -> list[str]:
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
