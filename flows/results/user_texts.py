"""Replaces captions in data set samples with user-written texts, and counts such texts per output.
Runs no model and writes nothing.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from artifacts.captions import Caption
from artifacts.disk_names import one_name
from artifacts.edits import REJECTED
from artifacts.plurals import counted, first_of
from artifacts.subtitles import one_line
from flows.job.media_digests import JobFile
from flows.job.prepare import Job
from flows.ledger.prompts import TAGS
from flows.ledger.tasks import Medium
from flows.media.handwritten import FORM, HandwrittenTexts, split_by_chunk, text_paths
from flows.options.text import OutputOptions, QuestionOptions, TextOptions
from flows.results.captions import unrejected
from flows.results.text_stems import text_stems


class UserTexts:
    """The hand-written texts of one run's media."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._texts = HandwrittenTexts(job.store, job.out)
        stems = zip(job.files, text_stems(job, beside=False), strict=True)
        self._media_of: defaultdict[str, dict[str, None]] = defaultdict(dict)
        """Path of each text that was used → names of the media that it describes."""
        self._without_trigger: dict[Path, None] = {}
        """Paths of texts without the run's trigger."""
        self._corrected: dict[Path, None] = {}
        """Paths of texts that take the place of a correction."""
        self._rejected = 0
        """Number of captions that are left out because users rejected them."""
        self._out = {each: Path(f"{stem}.{FORM}") for each, stem in stems}
        self._taken = {*map(one_name, self._out.values())}

    def apply(self, each: JobFile, captions: Sequence[Caption], *, first: bool) -> list[Caption]:
        """Return the captions of one file that users did not reject, with user-written text instead
        if there is one. `first`: whether they belong to the file's first prompt. A text file
        without a prompt name belongs to that prompt."""
        kept, config, file = [*unrejected(captions)], self._job.config, each.file
        self._rejected += len(captions) - len(kept)
        prompt = file.prompt or QuestionOptions.of(config).prompt or ""
        # A text that the prompt includes is part of the question, not an answer.
        if not kept or OutputOptions.of(config).replaces or TAGS in prompt:
            return kept
        found = self._texts.of(self._places(each, first=first), each.medium.digest, file.place)
        if found is None:
            return kept
        place, text = found
        self._media_of[one_name(place)][file.path.name] = None
        if (lines := split_by_chunk(text, len(captions))) is not None:  # the rejected ones, too
            pairs = [*zip(captions, lines, strict=True)]
        else:
            lines = split_by_chunk(text, len(kept)) or [text.strip()] * len(kept)
            pairs = [*zip(kept, lines, strict=True)]
        texts = [self._with_text(c, text, each.medium) for c, text in pairs if c.review != REJECTED]
        if any(c.original and c.caption != t.caption for c, t in zip(kept, texts, strict=True)):
            self._corrected[place] = None
        if any(TextOptions.of(config).trigger not in c.caption for c in texts):
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

    def _with_text(self, caption: Caption, text: str, medium: Medium) -> Caption:
        if not text or text == one_line(caption.caption):
            return caption
        rule = OutputOptions.of(self._job.config).rule
        text = self._texts.with_caption(text, medium.digest, caption.caption, rule)
        model = caption.original or caption.caption
        return replace(caption, caption=text, original=model, fields=None)

    def _places(self, each: JobFile, *, first: bool) -> Iterator[Path]:
        file = each.file
        names = [file.name, *([""] if first and file.name else [])]
        beside = [] if file.far else [p for n in names for p in text_paths(file.path, n)]
        out = [place := self._out[each]]
        if first and file.name:
            stem = str(place).removesuffix(f".{FORM}").removesuffix(f".{file.name}")
            bare = Path(f"{stem}.{FORM}")
            out += [bare] if one_name(bare) not in self._taken else []
        yield from [*beside, *out] if OutputOptions.of(self._job.config).beside else [*out, *beside]


def has_user_text(rows: Iterable[Caption]) -> bool:
    """Return whether a user wrote or corrected any of these captions."""
    return any(row.original for row in rows)


def user_texts_note(counts: Mapping[str, int]) -> str:
    """Return the end of a line with the number of user-written texts per format; empty for none."""
    parts = [f"{count:,} in {name}" for name, count in counts.items() if count]
    return f", user-written or corrected texts: {', '.join(parts)}" if parts else ""
