"""Uses hand-written texts in place of captions in data set samples, and counts user-written content
per output. Runs no model and writes nothing.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from artifacts.captions import Caption
from artifacts.edits import REJECTED
from artifacts.subtitles import one_line
from artifacts.words import counted, first_of
from flows.job.prepare import TAGS, Job
from flows.ledger.tasks import Medium
from flows.media.handwritten import FORM, HandwrittenTexts, lines_of_text, places_beside
from flows.media.media_files import MediaFile
from flows.options.text import OutputOptions, QuestionOptions, TextOptions
from flows.results.captions import unrejected
from flows.results.text_files import text_stems


class PeoplesTexts:
    """The hand-written texts of one run's media."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._texts = HandwrittenTexts(job.store)
        pairs = zip(job.files, job.contents, text_stems(job, beside=False), strict=True)
        self._of: defaultdict[Path, dict[str, None]] = defaultdict(dict)
        """Place of a text that is taken → names of the files that it is of."""
        self._bare: dict[Path, None] = {}
        """Places of texts that are without the run's trigger."""
        self._out = {_key(f, m): Path(f"{stem}.{FORM}") for f, m, stem in pairs}

    def put(
        self, file: MediaFile, medium: Medium, captions: Sequence[Caption], *, first: bool
    ) -> list[Caption]:
        """Return the captions of one file that nobody rejected, with what a person wrote in their
        place; `first` says whether they are those of the file's first prompt, which a text without
        a prompt's name is of."""
        kept, config = [*unrejected(captions)], self._job.config
        asked = file.prompt or QuestionOptions.of(config).prompt or ""
        # A text that the prompt tells the model is a part of the question, not an answer.
        if not kept or OutputOptions.of(config).replaces or TAGS in asked:
            return kept
        found = self._texts.of(self._places(file, medium, first=first), medium.digest)
        if found is None:
            return kept
        place, text = found
        self._of[place][file.path.name] = None
        if (lines := lines_of_text(text, len(captions))) is not None:  # the rejected ones, too
            said = [*zip(captions, lines, strict=True)]
        else:
            lines = lines_of_text(text, len(kept)) or [text.strip()] * len(kept)
            said = [*zip(kept, lines, strict=True)]
        texts = [self._put(c, words, medium) for c, words in said if c.review != REJECTED]
        if any(TextOptions.of(config).trigger not in each.caption for each in texts):
            self._bare[place] = None
        return texts

    def notes(self) -> Iterator[str]:
        """Yield what a person should know: which files have one text, and which texts are without
        the trigger."""
        shared = [" and ".join(names) for names in self._of.values() if len(names) > 1]
        if shared:
            yield (
                f"one .txt is the text of {first_of(shared)}, which differ only in their suffix: "
                "give each its own, such as a.jpg.txt, or rename them"
            )
        if self._bare:
            yield (
                f"--trigger is not put into {counted(len(self._bare), 'text')} that people wrote "
                f"({first_of([place.name for place in self._bare])}): write it there"
            )

    def _put(self, caption: Caption, words: str, medium: Medium) -> Caption:
        if not words or words == one_line(caption.caption):
            return caption
        rule = OutputOptions.of(self._job.config).rule
        text = self._texts.with_caption(words, medium.digest, caption.caption, rule)
        model = caption.original or caption.caption
        return replace(caption, caption=text, original=model, fields=None)

    def _places(self, file: MediaFile, medium: Medium, *, first: bool) -> Iterator[Path]:
        names = [file.name, *([""] if first and file.name else [])]
        beside = [] if file.far else [p for n in names for p in places_beside(file.path, n)]
        out = [self._out[_key(file, medium)]]
        yield from [*beside, *out] if OutputOptions.of(self._job.config).beside else [*out, *beside]


def _key(file: MediaFile, medium: Medium) -> tuple[object, ...]:
    return (*file.identity, file.name, medium.digest, medium.prompt)


def is_peoples(rows: Iterable[Caption]) -> bool:
    """Return whether any of these captions is a person's."""
    return any(row.original for row in rows)


def people_words(counts: Mapping[str, int]) -> str:
    """Return the end of a line that says how many texts of people went into which format; empty
    for none."""
    told = [f"{count:,} in {name}" for name, count in counts.items() if count]
    return f", texts that people wrote or corrected: {', '.join(told)}" if told else ""
