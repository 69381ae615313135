"""Names and writes one text file per medium, in `OUT` or next to the media.

Generated files are updated to the current captions. Files that a user wrote or edited are kept.

A text's name depends on the other media: `a`; `a.mp4` and `a.mkv`; `a.mp4-2`. A hidden file of the
folder of outputs remembers the name of each text, by the medium's path and by its content, so that
a text that a user wrote stays with its medium. A medium keeps its name when others are added,
removed or come in another order. Names that some disk does not distinguish count as one.

Next to media the name also shows trainers which medium a text is about. So a medium takes the plain
name back once no other medium of its folder needs that, unless a user wrote or edited the text that
it has.

In data set samples, texts that users wrote replace captions, and are counted per output. This step
writes nothing. The module runs no model.
"""

import contextlib
import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from artifacts.digests import digest_of
from artifacts.disk.files import sweep
from artifacts.disk.names import SUFFIXES, Naming, file_stems, one_name
from artifacts.errors import MediaError
from artifacts.texts.affixes import FixedText
from artifacts.texts.captions import WRITERS, Caption, one_line
from artifacts.texts.edits import REJECTED
from artifacts.texts.shards import DATASET
from artifacts.wording import counted, first_of, reasons
from flows.core.job.job_file import JobFile
from flows.core.job.prepare import Job
from flows.core.ledger.prompts import TAGS
from flows.core.media.generated_files import (
    ANY,
    FORM,
    LARGEST_TEXT,
    About,
    GeneratedFiles,
    HandwrittenTexts,
    about,
    digest_at,
    split_by_chunk,
    text_paths,
)
from flows.core.media.media_file import MediaFile, Selection
from flows.outputs.captions import unrejected
from flows.outputs.clocks import CUES, on_clock
from flows.outputs.marker import read_marker
from flows.outputs.record.run_record import TextsRecord
from stages.process.host_memory import cores

STEM, NUMBERED, TAKEN = "stem", "numbered", "taken"
"""Kinds of records: that a medium has a stem, that a number distinguishes some of its name, and
that a stem is taken, by a medium of this name without suffix."""
MORE_NUMBERS = 64
"""Numbers that are tried beyond those that the media of this run need."""


class Entry(NamedTuple):
    """A medium under one prompt."""

    path: str
    """Path of its text, as far as it depends on the medium alone, with the medium's suffix."""
    place: str
    digest: str
    prompt: str
    bare: str
    """Name of the medium without suffix and prompt."""
    is_sole: bool
    """Whether a trainer takes `bare` for this medium alone, in the folder where its text lies."""

    def identities(self, naming: Naming, *, alone: bool) -> tuple[str, ...]:
        """Return what the medium is recognized by, the surest first: its place, then its content.
        `alone`: it has no other prompt."""
        path = naming.folded(self.path)
        exact, rough = (
            [digest_of([path, identity, *more]) for identity in (self.place, self.digest)]
            for more in ([self.prompt], [])
        )
        return (exact[0], rough[0], exact[1], rough[1]) if alone else tuple(exact)


def text_stems(job: Job, beside: bool, sole: "SoleMedia | None" = None) -> list[str]:
    """Return the path without suffix of each file's text, absolute. `sole`: what is known of the
    folders."""
    root, written = "" if beside else f"{job.out}/", GeneratedFiles(job.store, out=job.out)
    sole = sole or SoleMedia(Naming("" if beside else job.out))
    entries = [
        Entry(
            _named(str(file.path) if beside else file.media_path, file.name),
            file.place,
            medium.digest,
            medium.prompt,
            _bare(file.media_path),
            beside and not file.name and sole.has(str(file.path)),
        )
        for file, medium in ((job_file.file, job_file.medium) for job_file in job.files)
    ]
    # Beside it, a file that two sources name has one text, but one text per prompt.
    keys = list(dict.fromkeys((e.path, e.prompt) for e in entries)) if beside else []
    first = {(e.path, e.prompt): e for e in reversed(entries)}
    distinct = [first[key] for key in keys] or entries
    names = _Names(GeneratedFiles(None, out=job.out), written, sole.naming)
    stems = names.of(distinct)
    if beside:
        of = dict(zip(keys, stems, strict=True))
        stems = [of[e.path, e.prompt] for e in entries]
    return [f"{root}{stem}" for stem in stems]


class _Names:
    """The names of texts in one folder of outputs, or next to media."""

    def __init__(self, memory: GeneratedFiles, written: GeneratedFiles, naming: Naming) -> None:
        self._memory = memory
        self._written = written
        self._naming = naming

    def of(self, entries: Sequence[Entry]) -> list[str]:
        """Return the stem of each medium: the one that it had, else one that is free."""
        memory, folded = self._memory, self._naming.folded
        defaults = file_stems([e.path for e in entries], self._naming)
        prompts = Counter((e.path, e.place) for e in entries)
        stems = self._known(entries, defaults) if memory else {}
        taken = {*map(folded, stems.values())}
        for at, (entry, default) in enumerate(zip(entries, defaults, strict=True)):
            name = digest_of(entry.bare)
            if at not in stems:
                stems[at] = self._free(default, name, taken, entry.is_sole)
                taken.add(folded(stems[at]))
            alone = prompts[entry.path, entry.place] == 1
            identities = entry.identities(self._naming, alone=alone)
            if not memory.has(STEM, stem := folded(stems[at]), identities[:1]):
                memory.add(STEM, stem, identities)
                memory.add(TAKEN, stem, (*ANY, name))
                if stems[at] not in self._plain(entry):
                    memory.add(NUMBERED, digest_of(folded(entry.path)))
        return [stems[at] for at in range(len(entries))]

    def _known(self, entries: Sequence[Entry], defaults: Sequence[str]) -> dict[int, str]:
        """Return the number of each medium that keeps the stem that it had → that stem. All are
        looked for by what is surest first: a copy of a medium has its content, too."""
        folded, stems, taken = self._naming.folded, dict[int, str](), set[str]()
        identities = [entry.identities(self._naming, alone=True) for entry in entries]
        for level in range(len(identities[0]) if identities else 0):
            for at, (entry, default) in enumerate(zip(entries, defaults, strict=True)):
                if at in stems:
                    continue
                known = (
                    stem
                    for stem in self._candidates(entry, default, len(entries))
                    if (key := folded(stem)) not in taken
                    and self._memory.has(STEM, key, (identities[at][level],))
                )
                stem = next(known, None)
                is_kept = stem == default or not entry.is_sole
                if stem is not None and (is_kept or self._has_user_text(entry, stem)):
                    stems[at] = stem
                    taken.add(folded(stem))
        return stems

    def _has_user_text(self, entry: Entry, stem: str) -> bool:
        paths = {form: Path(f"{stem}.{form}") for form in WRITERS}
        return any(
            os.path.lexists(path)
            and not self._written.has_of_any_kind(
                form, digest_at(path), about(entry.digest, path, entry.place)
            )
            for form, path in paths.items()
        )

    def _free(self, default: str, name: str, taken: Set[str], is_sole: bool) -> str:
        """Return a stem that no medium has. The text of a prompt, `a.short`, is not that of a
        medium `a.short`, which gets it back where it `is_sole`. `name`: digest of the medium's name
        without suffix."""
        number, stem, has = 1, default, self._memory.has
        while (key := self._naming.folded(stem)) in taken or (
            not is_sole and has(TAKEN, key) and not has(TAKEN, key, (name,))
        ):
            number += 1
            stem = self._naming.fitting(f"{default}-{number}")
        return stem

    def _plain(self, entry: Entry) -> tuple[str, str]:
        """Return the stems without a number."""
        return self._naming.fitting(_bare(entry.path)), self._naming.fitting(entry.path)

    def _candidates(self, entry: Entry, default: str, count: int) -> Iterator[str]:
        """Yield the stems that a medium may have had among `count` media, the likeliest first."""
        yield default
        plain = self._plain(entry)
        yield from plain
        if self._memory.has(NUMBERED, digest_of(self._naming.folded(entry.path))):
            numbers = range(2, min(count, MORE_NUMBERS) + MORE_NUMBERS)
            fitting = self._naming.fitting
            yield from (fitting(f"{stem}-{number}") for stem in plain for number in numbers)


class SoleMedia:
    """Media whose name without suffix is that of no other medium in their folder."""

    def __init__(self, naming: Naming) -> None:
        self.naming = naming
        self._stems = Counter[str]()
        self._listed: set[str] = set()
        self._media = Selection(recursive=False, extensions=())

    def has(self, path: str) -> bool:
        """Return whether a medium on this disk is one. Lists its folder once."""
        folder, _, _ = path.rpartition("/")
        if folder not in self._listed:
            self._listed.add(folder)
            with contextlib.suppress(OSError):
                names = filter(self._media.takes, os.listdir(folder))
                self._stems.update(self._stem(f"{folder}/{name}") for name in names)
        return self._stems[self._stem(path)] == 1

    def _stem(self, path: str) -> str:
        return self.naming.folded(_bare(path))


def _bare(path: str) -> str:
    return path.removesuffix(PurePosixPath(path).suffix)


def _named(path: str, name: str) -> str:
    """Return the path of a medium with a prompt name before its suffix: `a.short.mp4`."""
    return f"{_bare(path)}.{name}{PurePosixPath(path).suffix}" if name else path


class UserTexts:
    """The hand-written texts of one run's media."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._texts = HandwrittenTexts(job.store, job.out)
        self._spelled = Naming().folded
        stems = zip(job.files, text_stems(job, beside=False), strict=True)
        self._media_of: defaultdict[str, dict[str, None]] = defaultdict(dict)
        """Path of each text that was used → names of the media that it describes."""
        self._without_trigger: dict[Path, None] = {}
        """Paths of texts without the run's trigger."""
        self._corrected: dict[Path, None] = {}
        """Paths of texts that take the place of a correction."""
        self._rejected = 0
        """Number of captions that are left out because users rejected them."""
        self._out = {job_file: Path(f"{stem}.{FORM}") for job_file, stem in stems}
        self._taken = {*map(one_name, self._out.values())}

    def apply(
        self, job_file: JobFile, captions: Sequence[Caption], *, first: bool
    ) -> list[Caption]:
        """Return the captions of one file that users did not reject, with user-written text instead
        if there is one. `first`: whether they belong to the file's first prompt. A text file
        without a prompt name belongs to that prompt."""
        not_rejected, config, file = [*unrejected(captions)], self._job.config, job_file.file
        self._rejected += len(captions) - len(not_rejected)
        prompt = file.prompt or config.groups.question.prompt or ""
        # A text that the prompt includes is part of the question, not an answer.
        if not not_rejected or config.groups.outputs.replaces or TAGS in prompt:
            return not_rejected
        places = self._places(job_file, first=first)
        handwritten = self._texts.of(places, job_file.medium.digest, file.place)
        if handwritten is None:
            return not_rejected
        place, text = handwritten
        self._media_of[self._spelled(str(place))][file.path.name] = None
        if (lines := split_by_chunk(text, len(captions))) is not None:  # the rejected ones, too
            pairs = [*zip(captions, lines, strict=True)]
        else:
            lines = split_by_chunk(text, len(not_rejected)) or [text.strip()] * len(not_rejected)
            pairs = [*zip(not_rejected, lines, strict=True)]
        texts = [_with_text(c, text) for c, text in pairs if c.review != REJECTED]
        if any(
            c.original and c.caption != t.caption for c, t in zip(not_rejected, texts, strict=True)
        ):
            self._corrected[place] = None
        if any(config.groups.text.trigger not in c.caption for c in texts):
            self._without_trigger[place] = None
        return texts

    def notes(self) -> Iterator[str]:
        """Yield notes for the user: shared texts, rejected captions, texts without the trigger."""
        shared = [" and ".join(names) for names in self._media_of.values() if len(names) > 1]
        if shared:
            yield (
                f"one .txt describes {first_of(shared)}, which differ only in their suffix: "
                "give each its own, such as a.jpg.txt, or rename them"
            )
        if self._rejected:
            yield f"not in data sets: {counted(self._rejected, 'caption')} (rejected)"
        if self._without_trigger:
            yield (
                f"--trigger is not added to {counted(len(self._without_trigger), 'text')} that "
                f"users wrote ({first_of([place.name for place in self._without_trigger])}): "
                "add it there"
            )
        if self._corrected:
            yield (
                f"{counted(len(self._corrected), 'text')} by hand "
                f"({first_of([str(place) for place in self._corrected])}): used instead of a "
                "correction made in a review; move a text away to use the correction"
            )
        yield from self._texts.notes()

    def _places(self, job_file: JobFile, *, first: bool) -> Iterator[Path]:
        file = job_file.file
        names = [file.name, *([""] if first and file.name else [])]
        beside = [] if file.remote else [p for n in names for p in text_paths(file.path, n)]
        out = [place := self._out[job_file]]
        if first and file.name:
            stem = str(place).removesuffix(f".{FORM}").removesuffix(f".{file.name}")
            bare = Path(f"{stem}.{FORM}")
            out += [bare] if one_name(bare) not in self._taken else []
        yield from [*beside, *out] if self._job.config.groups.outputs.beside else [*out, *beside]


def has_user_text(rows: Iterable[Caption]) -> bool:
    """Return whether a user wrote or corrected any of these captions."""
    return any(row.original for row in rows)


def user_texts_note(counts: Mapping[str, int]) -> str:
    """Return the end of a line with the number of texts per format that a person wrote or
    corrected; empty for none."""
    parts = [f"{count:,} in {name}" for name, count in counts.items() if count]
    return f", edited texts in place of the model's: {', '.join(parts)}" if parts else ""


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
    user_texts: int = 0
    """Files with user-written text: kept files, and files with corrected captions."""
    earlier: list[str] = field(default_factory=list)
    """Names of generated files of an earlier run whose media are not completely captioned now."""
    same_stem: list[str] = field(default_factory=list)
    """Names of media that differ only in their suffix, one entry per stem."""
    unlike: Counter[str] = field(default_factory=Counter)
    """Why trainers show pictures beside new texts otherwise than the model saw them → count."""
    requested: bool = True
    """Whether this run writes the format; otherwise it only counts outdated files."""
    others: list[str] = field(default_factory=list)
    """Paths in `OUT` of files of this format that belong to no medium of this run."""

    @property
    def record(self) -> TextsRecord:
        """Return the counts, as `run.json` keeps them."""
        return TextsRecord(
            format=self.form,
            beside=self.beside,
            written=self.written,
            kept=len(self.kept),
            earlier=len(self.earlier),
            others=len(self.others),
        )

    def notes(self) -> Iterator[str]:
        """Yield notes for the user about these files."""
        noun = f".{self.form} file"
        if self.kept:
            yield (
                f"kept {counted(len(self.kept), noun)} that users wrote or edited "
                f"({first_of(self.kept)}); --overwrite replaces them"
            )
        if self.same_stem:
            yield (
                f"{first_of(self.same_stem)} differ only in their suffix: trainers that expect "
                "one .txt per stem, such as sd-scripts, do not find their texts; rename them"
            )
        if self.unlike:
            yield (
                f"{counted(self.unlike.total(), 'picture')} beside new texts may be shown to a "
                f"trainer otherwise than to the model ({reasons(self.unlike)}); --format kohya "
                "writes a data set with exact copies"
            )
        if self.earlier and not self.requested:
            yield (
                f"from an earlier run: {counted(len(self.earlier), noun)} beside the media "
                f"({first_of(self.earlier)}); --format {self.form} --beside rewrites them"
            )
        elif self.earlier:
            yield (
                f"from an earlier run: {counted(len(self.earlier), noun)} "
                f"({first_of(self.earlier)}): not all is captioned yet"
            )
        if self.others:
            yield (
                f"not from this run: {counted(len(self.others), noun)} in the same folder "
                f"({first_of(self.others)})"
            )


CHAPTERS = ".chapters.vtt"
"""End of the name of a track of chapters, which lies beside texts of captions."""
TRACK = "chapters"
"""Format under which runs record a track of chapters."""
NOT_TEXTS = ("logs", DATASET)
"""Folders of `OUT` without text files of media."""

CaptionsOf = Callable[[Job, JobFile], list[Caption] | None]
"""Returns what the text of a file holds; None if some of it is missing."""


def write_texts(job: Job, own: GeneratedFiles, captions_of: CaptionsOf) -> list[TextFileCounts]:
    """Update text files to the current captions: the requested formats, and formats of earlier runs
    that still have a file in `OUT`. Only count outdated generated files of other formats next to
    the media."""
    outputs = job.config.groups.outputs
    counts: list[TextFileCounts] = []
    marker = read_marker(job.out)
    written = WRITERS.keys() & (marker.outputs if marker is not None else ())
    earlier = {form for form in written if any(_texts_below(job.out, form))}
    for beside in (False, True):
        formats = outputs.format if outputs.beside == beside else ()
        if not own and not set(formats) & set(WRITERS):
            continue
        sole = SoleMedia(Naming("" if beside else job.out))
        stems = text_stems(job, beside, sole)
        folders = {os.path.dirname(stem) for stem in stems}
        for folder in folders:
            sweep(Path(folder))
        present = _texts_in(folders) if beside else set[str]()
        for form in WRITERS:
            writer = _Writer(job, own, TextFileCounts(form=form, beside=beside), stems, sole)
            if form in formats or (not beside and form in earlier):
                counts.append(writer.write(captions_of))
            elif beside and writer.count_outdated(captions_of, present):
                counts.append(writer.texts)
    return counts


def _texts_in(folders: Set[str]) -> set[str]:
    """Return the files in these folders that have a suffix of text files. Listing a folder takes as
    long as checking one file in it."""
    texts: set[str] = set()
    for folder in folders:
        with contextlib.suppress(OSError):
            names = (name for name in os.listdir(folder) if name.endswith(SUFFIXES))
            texts.update(one_name(os.path.join(folder, name)) for name in names)
    return texts


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
        words = job.config.groups.text
        self._fixed = FixedText.of(words.trigger, words.prefix, words.suffix)
        self._paths = [Path(f"{stem}.{texts.form}") for stem in stems]
        self._sole = sole
        self._described: dict[Path, None] = {}
        """Pictures whose text is new."""

    def write(self, captions_of: CaptionsOf) -> TextFileCounts:
        """Update the files to the current captions, and return their counts."""
        for path, of, text, captions in self._expected_texts(captions_of):
            if text is None:
                self.texts.earlier += [path.name] * self._has_own(path, of)
            elif not text:  # all of its captions were rejected, or it has no labels
                if self._has_own(path, of):
                    path.unlink(missing_ok=True)
            elif self._update(path, of, text):
                self.texts.written += 1
                answers = self._job.answers.of(captions[0].features)
                self._own.put_around((one_name(path), of[0]), self._fixed.about(answers))
                self.texts.user_texts += any(caption.original for caption in captions)
            else:
                self.texts.kept.append(path.name)
                self.texts.user_texts += 1
        self._remove_distinguished()
        if not self.texts.beside:
            ours, out = {one_name(path): path for path in self._paths}, self._job.out
            below = sorted(_texts_below(out, self.texts.form))
            others = (path for path in below if not _is_one_file(path, ours.get(one_name(path))))
            self.texts.others = [os.path.relpath(path, out) for path in others]
        elif self.texts.form == "txt":
            self.texts.same_stem = _same_stem(self._job, self._sole.naming)
            self.texts.unlike = _unlike(self._described)
        return self.texts

    def _update(self, path: Path, of: About, text: bytes) -> bool:
        """Update one file by the rule for existing files. Return whether it holds `text` now."""
        replaces = self._job.config.groups.outputs.replaces
        if path.name.endswith(CHAPTERS):
            # A track may have had the name before the medium was there.
            digest = digest_at(path, LARGEST_TEXT)
            if self._own.has(TRACK, digest, (one_name(path),)):
                path.unlink()
        return self._own.update(path, text, self.texts.form, of, replace=replaces)

    def count_outdated(self, captions_of: CaptionsOf, present: Set[str]) -> int:
        """Count the generated files that differ from the current captions."""
        self.texts.requested = False
        for path, of, text, _ in self._expected_texts(captions_of, present):
            same = (
                text is not None
                and digest_at(path, LARGEST_TEXT) == hashlib.sha256(text).hexdigest()
            )
            self.texts.earlier += [path.name] * (not same and self._has_own(path, of))
        return len(self.texts.earlier)

    def _expected_texts(
        self, captions_of: CaptionsOf, only: Set[str] | None = None
    ) -> Iterator[tuple[Path, About, bytes | None, list[Caption]]]:
        """Yield each file with what it is about, the text that it should hold, and the captions in
        the text.

        `only` limits the files. The text is empty if a medium has no captions that were not
        rejected, and None if some are missing: a partial text would look complete.
        """
        job = self._job
        times = Counter(self._paths)
        for path, job_file in zip(self._paths, job.files, strict=True):
            file, medium = job_file.file, job_file.medium
            if only is not None and one_name(path) not in only:
                continue
            if job_file.away and (self.texts.beside or times[path] > 1):
                continue  # its folder is away; or it has one entry per chunk
            of = about(medium.digest, path, file.place, job.out)
            if self._is_plain(path, file):  # any text that a run wrote there is to be about it
                of = (*of, one_name(path))
            captions = captions_of(job, job_file)
            if captions is None:
                yield path, of, None, []
                continue
            not_rejected = [*unrejected(captions)]
            timed = on_clock(job, medium, not_rejected) if self.texts.form in CUES else not_rejected
            text = "".join(WRITERS[self.texts.form](timed)).encode("utf-8", errors="replace")
            if medium.kind == "image" and self.texts.beside and self.texts.form == "txt":
                sha256 = hashlib.sha256(text).hexdigest()
                if not self._own.has(self.texts.form, sha256, of):
                    self._described[file.path] = None
            yield path, of, text, not_rejected

    def _is_plain(self, path: Path, file: MediaFile) -> bool:
        """Return whether a text next to media has the name that trainers expect, and its medium is
        the only one of that name."""
        is_plain = self.texts.beside and path == file.path.with_suffix(path.suffix)
        return is_plain and self._sole.has(str(file.path))

    def _remove_distinguished(self) -> None:
        """Remove the texts, as runs wrote them, of media that have a plain name now."""
        ours = {one_name(path) for path in self._paths}
        for path, job_file in zip(self._paths, self._job.files, strict=True):
            file = job_file.file
            before = Path(f"{file.path}.{self.texts.form}")
            if not self._is_plain(path, file) or one_name(before) in ours:
                continue
            of = about(job_file.medium.digest, before, file.place)
            if (
                os.path.lexists(before)
                and self._has_own(path, of[:1])
                and self._has_own(before, of)
            ):
                before.unlink(missing_ok=True)

    def _has_own(self, path: Path, of: About) -> bool:
        return self._own.has(self.texts.form, digest_at(path, LARGEST_TEXT), of)


def _with_text(caption: Caption, text: str) -> Caption:
    """Return a caption with a text by hand in its place, if there is one."""
    if not text or text == one_line(caption.caption):
        return caption
    model = caption.original or caption.caption
    return replace(caption, caption=text, original=model, fields=None)


def _is_one_file(path: str, own: Path | None) -> bool:
    """Return whether a path that the disk lists is that of an own text, in any spelling."""
    if own is None or path == str(own):
        return own is not None
    with contextlib.suppress(OSError):
        return os.path.samefile(path, own)
    return False


def _texts_below(out: Path, form: str) -> Iterator[str]:
    for folder, names, files in os.walk(out):
        names[:] = [name for name in names if name not in NOT_TEXTS]
        texts = (name for name in files if name.endswith(f".{form}"))
        yield from (os.path.join(folder, name) for name in texts if not name.endswith(CHAPTERS))


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


def _same_stem(job: Job, naming: Naming) -> list[str]:
    """Return the names of files that differ only in their suffix, one entry per stem."""
    by_stem: dict[str, dict[str, None]] = {}
    for path in (job_file.file.path for job_file in job.files):
        by_stem.setdefault(naming.folded(str(path.with_suffix(".txt"))), {})[path.name] = None
    return [" and ".join(names) for names in by_stem.values() if len(names) > 1]
