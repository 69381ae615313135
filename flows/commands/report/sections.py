"""Gathers the report's sections on labels and on learning from the run's files. Draws nothing and
opens no media file.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from msgspec import Struct
from msgspec import field as struct_field

from artifacts.disk.json_records import json_of, read_json_file, read_jsonl_file
from artifacts.disk.json_shapes import Json
from artifacts.disk.json_types import Count, Number, Text
from artifacts.texts.labels import spans_of
from flows.commands.label.files import LINES, REPORT
from flows.core.media.output_rows import MediaRow
from flows.core.options.formats import MEDIA
from flows.core.pipelines import LABELS
from flows.outputs.media_rows import PageCaption, PageMedium, media_with_lines, shown_medium
from flows.outputs.record.rounds import COLUMNS as ROUND_COLUMNS
from flows.outputs.record.rounds import Round, exact, loss_of
from flows.outputs.record.rounds import cells as round_cells
from flows.outputs.record.run_read import load_record
from flows.outputs.run_wording import kind_of
from stages.tune.record import CaptionScore

RUN_AGAIN = "Run the same `penstock label` again, which rewrites it"
SHEET = 200
"""Maximum images and videos on the page; `labels.jsonl` has all of them."""
MAX_LINES = 100_000
"""Maximum lines read for the page: those of a day of video."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredRow:
    """A label's score, as a line of `labels.jsonl` has it."""

    label: Text
    score: Number
    passed: bool
    box: tuple[Number, Number, Number, Number] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelRow:
    """A line of `labels.jsonl`."""

    media_path: Text
    source: Text
    time: Number | None
    labels: list[ScoredRow]

    @property
    def given(self) -> list[ScoredRow]:
        return [scored for scored in self.labels if scored.passed]


class LabelCount(Struct, frozen=True, kw_only=True):
    """What a label was given to."""

    label: Text
    passed: Count
    median: Number | None
    deviation: Number | None
    threshold: Number | None
    rule: Text = struct_field(name="from")
    """How the threshold was found."""
    bins: list[Count]


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelReport:
    """The file about all labels of a run."""

    pictures: Count
    labelled: Count
    low: Number
    high: Number
    labels: list[LabelCount]


def label_counts(out: Path) -> dict[str, Json] | None:
    """Return what each label of a run was given to, those given most first; None where the run has
    written none yet. Raises EnvironmentFault."""
    if not (out / REPORT).exists():
        return None
    report = read_json_file(LabelReport, out / REPORT, RUN_AGAIN)
    by_count = sorted(report.labels, key=lambda counted: -counted.passed)
    return json_of(replace(report, labels=by_count))


def labelled_media(out: Path, folder: Path, files: int = SHEET) -> list[PageMedium[PageCaption]]:
    """Return the first `files` media of a run into `out`, as a page in `folder` needs them: as of
    captions, with `labels`, each of them (name, score, box in pixels or None). Raises
    EnvironmentFault."""
    entries = read_jsonl_file(MediaRow, out / MEDIA, RUN_AGAIN, files)
    # A running command writes media.jsonl at the end.
    max_lines = sum(entry.captions for entry in entries) or SHEET
    lines = read_jsonl_file(LabelRow, out / LINES, RUN_AGAIN, min(max_lines, MAX_LINES))
    return [
        _medium(entry, rows, folder) for entry, rows in media_with_lines(entries, lines) if rows
    ]


def label_run_below(out: Path) -> Path | None:
    """Return the folder of labels that `penstock label` writes below one of captions by default;
    None without labels there. Raises UsageError, EnvironmentFault."""
    below = out / LABELS
    return below if (below / LINES).exists() and kind_of(load_record(below)) == LABELS else None


def add_labels(
    media: Iterable[PageMedium[PageCaption]], labelled: Iterable[PageMedium[PageCaption]]
) -> None:
    """Add to captioned media their labels: `labels` of an image, `spans` of a video."""
    by_path = {medium["path"]: medium for medium in labelled}
    for medium in media:
        if (other := by_path.get(medium["path"])) is not None:
            spans: Json = [[row.start, row.text] for row in other["captions"] if row.text]
            medium |= {"labels": other["labels"]} if medium["kind"] == "image" else {"spans": spans}


def _medium(entry: MediaRow, lines: Sequence[LabelRow], folder: Path) -> PageMedium[PageCaption]:
    medium: PageMedium[PageCaption] = shown_medium(entry, folder)
    if any(line.time is not None for line in lines):
        return {**medium, "labels": [], "captions": _stretches(lines)}
    labels = [label for line in lines for label in line.given]
    text = ", ".join(label.label for label in labels)
    rows = [[label.label, label.score, label.box] for label in labels]
    return {**medium, "labels": rows, "captions": [PageCaption(0.0, 0.0, text)]}


def _stretches(lines: Sequence[LabelRow]) -> list[PageCaption]:
    """Return the spans of a video with their labels. The end of the video is unknown: the last
    frame counts as long as the one before it."""
    frames = [(line.time or 0.0, [one.label for one in line.given]) for line in lines]
    last = frames[-1][0]
    end = last + (last - frames[-2][0] if len(frames) > 1 else 1.0)
    return [
        PageCaption(span.start, span.end, ", ".join(span.labels)) for span in spans_of(frames, end)
    ]


ROUNDS_LINE = (
    "Scores of held-out corrections against the number of captions that a person corrected or "
    "accepted. The held-out set grows with them."
)


def rounds_facts(rounds: Sequence[Round]) -> dict[str, Json] | None:
    """Return the curves and the table of the rounds of learning; None before the first score."""
    if not (scored := [round_ for round_ in rounds if round_.after]):
        return None
    titles = ("Loss per token", "Share of exact captions")
    return {
        "line": ROUNDS_LINE,
        "curves": [_learned(title, at, scored) for at, title in enumerate(titles)],
        "columns": ROUND_COLUMNS,
        "rows": [round_cells(round_) for round_ in rounds],
    }


def _learned(title: str, at: int, rounds: Sequence[Round]) -> dict[str, Json]:
    """Return the curves of one score: of each new adapter, and of the model in use."""
    before, after = (
        [_scores(round_, getattr(round_, name))[at] for round_ in rounds]
        for name in ("before", "after")
    )
    decided = [len(round_.examples) + len(round_.held_out) for round_ in rounds]
    pairs = zip(rounds, before, after, strict=True)
    used = [new if round_.accepted else old for round_, old, new in pairs]
    in_use = [(0, before[0]), *zip(decided, used, strict=True)]
    series = [
        {"name": "in use", "kind": "held-out", "points": in_use},
        {"name": "new adapter", "kind": "trained", "points": [*zip(decided, after, strict=True)]},
    ]
    return {"title": title, "series": series, "unit": "corrections:"}


def _scores(round_: Round, scores: Sequence[CaptionScore]) -> tuple[float, float]:
    corrections = round_.corrections(scores)
    return loss_of(corrections), exact(corrections) / max(1, len(corrections))
