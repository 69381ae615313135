"""Writes one text file per medium, in `OUT` or next to the media. Updates generated files to the
current captions, and keeps files that a user wrote or edited. Runs no model.
"""

import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from artifacts.captions import Caption
from artifacts.disk_names import one_name
from artifacts.edits import FixedText
from artifacts.errors import MediaError
from artifacts.names import SUFFIXES
from artifacts.plurals import counted, first_of
from artifacts.shards import DATASET
from artifacts.subtitles import WRITERS
from flows.job.media_digests import JobFile
from flows.job.prepare import Job
from flows.media.generated_files import LARGEST_TEXT, About, GeneratedFiles, about, digest_at
from flows.media.media_files import MediaFile
from flows.media.text_merging import JoinedTexts
from flows.options.formats import JOINABLE, JOINED
from flows.options.text import OutputOptions, TextOptions
from flows.results.captions import unrejected
from flows.results.marker import read_marker
from flows.results.text_stems import SoleMedia, naming_of, text_stems
from stages.process.cgroup import cores


@dataclass(kw_only=True, slots=True)
class TextFileCounts:
    """Counts of the files of one format in one place, by outcome."""

    form: str
    beside: bool
    """Whether they lie next to the media."""
    written: int = 0
    """Files that hold the current text."""
    kept: list[str] = field(default_factory=list)
    """Names of files that users wrote or edited."""
    edited: list[str] = field(default_factory=list)
    """Names of kept files whose generated part was edited; the whole file is now the user's."""
    user_texts: int = 0
    """Files with user-written text: kept files, and files with corrected captions."""
    earlier: int = 0
    """Generated files of an earlier run whose media are not completely captioned now."""
    same_stem: list[str] = field(default_factory=list)
    """Names of media that differ only in their suffix, one entry per stem."""
    unlike: Counter[str] = field(default_factory=Counter)
    """Why trainers show pictures beside new texts otherwise than the model saw them → count."""
    requested: bool = True
    """Whether this run writes the format; otherwise it only counts outdated files."""
    others: int = 0
    """Files of this format in `OUT` that belong to no medium of this run."""

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
        """Yield notes for the user about these files."""
        noun = f".{self.form} file"
        if self.kept:
            yield (
                f"kept {counted(len(self.kept), noun)} that users wrote or edited "
                f"({first_of(self.kept)}); --overwrite replaces them"
            )
        if self.edited:
            yield (
                f"kept {counted(len(self.edited), noun)} whose generated part was edited "
                f"({first_of(self.edited)})"
            )
        if self.same_stem:
            yield (
                f"{first_of(self.same_stem)} differ only in their suffix: trainers that expect "
                "one .txt per stem, such as sd-scripts, do not find their texts; rename them"
            )
        if self.unlike:
            reasons = ", ".join(f"{why} {count:,}" for why, count in self.unlike.most_common())
            yield (
                f"{counted(self.unlike.total(), 'picture')} beside new texts may be shown to a "
                f"trainer otherwise than to the model ({reasons}); --format kohya writes a data "
                "set with exact copies"
            )
        if self.earlier and not self.requested:
            yield (
                f"from an earlier run: {counted(self.earlier, noun)} beside the media; "
                f"--format {self.form} --beside rewrites them"
            )
        elif self.earlier:
            yield f"from an earlier run: {counted(self.earlier, noun)} (not all is captioned yet)"
        if self.others:
            yield f"not from this run: {counted(self.others, noun)} in the same folder"


NOT_TEXTS = ("logs", DATASET)
"""Folders of `OUT` without text files of media."""

CaptionsOf = Callable[[Job, JobFile], list[Caption] | None]
"""Returns what the text of a file holds; None if some of it is missing."""


def write_texts(job: Job, own: GeneratedFiles, captions_of: CaptionsOf) -> list[TextFileCounts]:
    """Update text files to the current captions: the requested formats, and formats of earlier runs
    that still have a file in `OUT`. Only count outdated generated files of other formats next to
    the media."""
    outputs = OutputOptions.of(job.config)
    found: list[TextFileCounts] = []
    marker = read_marker(job.out)
    written = WRITERS.keys() & (marker.outputs if marker is not None else ())
    earlier = {each for each in written if any(_texts_below(job.out, each))}
    for beside in (False, True):
        formats = outputs.format if outputs.beside == beside else ()
        if not own and not set(formats) & set(WRITERS):
            continue
        sole = SoleMedia(naming_of(job, beside))
        stems = text_stems(job, beside, sole)
        present = _texts_in({os.path.dirname(stem) for stem in stems}) if beside else set[str]()
        for form in WRITERS:
            writer = _Writer(job, own, TextFileCounts(form=form, beside=beside), stems, sole)
            if form in formats or (not beside and form in earlier):
                found.append(writer.write(captions_of))
            elif beside and writer.count_outdated(captions_of, present):
                found.append(writer.texts)
    return found


def _texts_in(folders: Set[str]) -> set[str]:
    """Return the files in these folders that have a suffix of text files. Listing a folder takes as
    long as checking one file in it."""
    found: set[str] = set()
    for folder in folders:
        with contextlib.suppress(OSError):
            names = (name for name in os.listdir(folder) if name.endswith(SUFFIXES))
            found.update(one_name(os.path.join(folder, name)) for name in names)
    return found


class _Writer:
    """Writes the files of one format in one place."""

    def __init__(
        self,
        job: Job,
        own: GeneratedFiles,
        texts: TextFileCounts,
        stems: Sequence[str],
        sole: SoleMedia,
    ) -> None:
        self._job = job
        self._own = own
        self.texts = texts
        self._joined = JoinedTexts(own, texts.form)
        self._fixed = FixedText.of(vars(TextOptions.of(job.config)))
        self._paths = [Path(f"{stem}.{texts.form}") for stem in stems]
        self._sole = sole
        self._described: dict[Path, None] = {}
        """Pictures whose text is new."""

    def write(self, captions_of: CaptionsOf) -> TextFileCounts:
        """Update the files to the current captions, and return their counts."""
        for path, of, text, has_edits in self._expected_texts(captions_of):
            if text is None:
                self.texts.earlier += self._is_own(path, of)
            elif not text:  # all of its captions were rejected, or it has no labels
                if self._has_own(path, of):
                    path.unlink(missing_ok=True)
            elif self._update(path, of, text):
                self.texts.written += 1
                self._own.put_around((one_name(path), of[0]), self._fixed)
                self.texts.user_texts += has_edits or self._is_joined(path, of)
            else:
                self.texts.kept.append(path.name)
                self.texts.user_texts += 1
        self._remove_distinguished()
        self.texts.edited = self._joined.edited
        if not self.texts.beside:
            self.texts.others = self._count_others()
        elif self.texts.form in JOINABLE:
            self.texts.same_stem = _same_stem(self._job)
            self.texts.unlike = _unlike(self._described)
        return self.texts

    def _update(self, path: Path, of: About, text: bytes) -> bool:
        """Update one file by the rule for existing files. Return whether it holds `text` now."""
        outputs, form = OutputOptions.of(self._job.config), self.texts.form
        if outputs.rule in JOINED and form in JOINABLE and os.path.lexists(path):
            return self._joined.update(path, of, text.decode(), outputs.rule)
        return self._own.update(path, text, form, of, replace=outputs.replaces)

    def count_outdated(self, captions_of: CaptionsOf, present: Set[str]) -> int:
        """Count the generated files that differ from the current captions."""
        self.texts.requested = False
        for path, of, text, _ in self._expected_texts(captions_of, present):
            same = (
                text is not None
                and digest_at(path, LARGEST_TEXT) == hashlib.sha256(text).hexdigest()
            )
            self.texts.earlier += not same and self._is_own(path, of)
        return self.texts.earlier

    def _expected_texts(
        self, captions_of: CaptionsOf, only: Set[str] | None = None
    ) -> Iterator[tuple[Path, About, bytes | None, bool]]:
        """Yield each file with what it is about, the text that it should hold, and whether users
        edited the text.

        `only` limits the files. The text is empty if a medium has no captions that were not
        rejected, and None if some are missing: a partial text would look complete.
        """
        job = self._job
        for path, each in zip(self._paths, job.files, strict=True):
            file, medium = each.file, each.medium
            if only is not None and one_name(path) not in only:
                continue
            of = about(medium.digest, path, file.place, job.out)
            if self._is_plain(path, file):  # any text that a run wrote there is to be about it
                of = (*of, one_name(path))
            captions = captions_of(job, each)
            if captions is None:
                yield path, of, None, False
                continue
            kept = [*unrejected(captions)]
            text = "".join(WRITERS[self.texts.form](kept)).encode("utf-8", errors="replace")
            if medium.kind == "image" and self.texts.beside and self.texts.form in JOINABLE:
                sha256 = hashlib.sha256(text).hexdigest()
                if not self._own.has(self.texts.form, sha256, of):
                    self._described[file.path] = None
            yield path, of, text, any(caption.original for caption in kept)

    def _is_plain(self, path: Path, file: MediaFile) -> bool:
        """Return whether a text next to media has the name that trainers expect, and its medium is
        the only one of that name."""
        is_plain = self.texts.beside and path == file.path.with_suffix(path.suffix)
        return is_plain and self._sole.has(str(file.path))

    def _remove_distinguished(self) -> None:
        """Remove the texts, as runs wrote them, of media that have a plain name now."""
        ours = {one_name(path) for path in self._paths}
        for path, each in zip(self._paths, self._job.files, strict=True):
            file = each.file
            before = Path(f"{file.path}.{self.texts.form}")
            if not self._is_plain(path, file) or one_name(before) in ours:
                continue
            of = about(each.medium.digest, before, file.place)
            if (
                os.path.lexists(before)
                and self._has_own(path, of[:1])
                and self._has_own(before, of)
            ):
                before.unlink(missing_ok=True)

    def _is_own(self, path: Path, of: About) -> bool:
        """Return whether the file, or a part of it, was generated."""
        joins = self.texts.form in JOINABLE
        return self._has_own(path, of) or (joins and self._joined.holds(path, of))

    def _has_own(self, path: Path, of: About) -> bool:
        return self._own.has(self.texts.form, digest_at(path, LARGEST_TEXT), of)

    def _is_joined(self, path: Path, of: About) -> bool:
        """Return whether an updated file also holds user-written text."""
        joins = OutputOptions.of(self._job.config).rule in JOINED and self.texts.form in JOINABLE
        return joins and not self._has_own(path, of)

    def _count_others(self) -> int:
        ours = {one_name(path) for path in self._paths}
        below = _texts_below(self._job.out, self.texts.form)
        return sum(one_name(path) not in ours for path in below)


def _texts_below(out: Path, form: str) -> Iterator[str]:
    """Yield the files of a format in a folder of outputs."""
    for folder, names, files in os.walk(out):
        names[:] = [name for name in names if name not in NOT_TEXTS]
        yield from (os.path.join(folder, name) for name in files if name.endswith(f".{form}"))


def _unlike(pictures: Iterable[Path]) -> Counter[str]:
    """Return why a trainer may show pictures otherwise than the model saw them → count. Reads a PNG
    whole, and of others the header."""
    from stages.frames.image import differs

    def why(path: Path) -> str:
        with contextlib.suppress(OSError, MediaError):
            return differs(path)
        return ""

    with ThreadPoolExecutor(cores()) as pool:
        return Counter(filter(None, pool.map(why, pictures)))


def _same_stem(job: Job) -> list[str]:
    """Return the names of files that differ only in their suffix, one entry per stem."""
    found: dict[str, dict[str, None]] = {}
    for path in (each.file.path for each in job.files):
        found.setdefault(one_name(path.with_suffix(".txt")), {})[path.name] = None
    return [" and ".join(names) for names in found.values() if len(names) > 1]
