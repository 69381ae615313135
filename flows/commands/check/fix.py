"""Makes captions shorter that are too long for a trainer's text encoder (`penstock check --fix`).

1. Only captions of the model that no person changed, accepted or rejected, and that are too long.
2. They are made again from stored features, with the sentence of `--length medium`, and those that
   are still too long with that of `--length short`. The first text that fits is taken.
3. Of what is then still too long, the shortest text is cut at the end of a sentence.
4. The new texts are changes in the folder's journal, one for each way, that nobody has read: the
   review shows them as such, and takes them back in one step. They enter no store, because another
   data set of the same captions may be for another trainer.
5. The run's command writes its outputs again.
"""

import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from artifacts.disk.files import json_text, write_text
from artifacts.errors import UsageError
from artifacts.remote.addresses import is_address
from artifacts.texts.edits import SHORTENED, UNTOUCHED, Action, Edit
from artifacts.texts.trainer_limits import limits_of
from artifacts.texts.trainer_models import TrainerModel
from flows.commands.caption import run as sift_first
from flows.commands.review.captions import ReviewedCaptions
from flows.core.console.display import Display
from flows.core.job.prepare import Job
from flows.core.machine.launch import DirectLauncher
from flows.core.machine.versions import now
from flows.core.options.commands import CaptionConfig
from flows.core.options.formats import ORIGINAL
from flows.core.options.text import LENGTHS
from flows.core.options.training import RecordedRun
from flows.execution.run import LauncherMaker
from flows.execution.run import caption as run_again
from flows.outputs.media_rows import media_with_captions
from flows.outputs.record.record_writer import RecordWriter
from flows.outputs.seen.sets import TrainedSample
from flows.outputs.seen.tokens import (
    load_tokenizer,
    lost,
    main_limit,
    missing_note,
    read_texts,
    tokenizer_folder,
)
from flows.outputs.unwritten import count_unwritten

TRIED = ("medium", "short")
"""Values of `--length` that are tried, the longest first."""
CUT = "cut"
"""How a text is made shorter that no length fits."""
SENTENCE_END = re.compile(r"[.!?\u3002\uff01\uff1f\u0964\u06d4\u2026][\"')\]\u201d\u2019]*(?=\s|$)")
"""The end of a sentence, in scripts with their own full stop, too."""
Fits = Callable[[str], bool]
"""A function of a caption as the trainer gets it: whether its text encoder reads all of it."""
Chunk = tuple[str, float, str]
"""Path of a medium, start of a chunk, and prompt."""
DEFAULTS = (
    *("prompt", "prompts", "format", "trainer", "beside", "summary", "existing", "overwrite"),
    *("limit", "sift", "questions", "keep", "trigger", "prefix", "suffix"),
)
"""Options that the run which makes captions again does not take over: it writes them alone, and
nothing around them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fixed:
    """What came of making captions shorter."""

    counts: Mapping[str, int]
    """How → number of captions: a value of `--length`, or CUT."""
    left: int
    """Number of captions that are still too long."""
    kept: int
    """Number of captions that are too long, and a person's."""

    @property
    def line(self) -> str:
        """Return it in one line."""
        ways = {"medium": "made again in medium length", "short": "made again in short length"}
        ways |= {CUT: "cut at the end of a sentence"}
        parts = [f"{count:,} {ways[how]}" for how, count in self.counts.items() if count]
        parts += [f"{self.left:,} left as they are, without a sentence that fits"] * bool(self.left)
        parts += [f"{self.kept:,} kept, which a person wrote or accepted"] * bool(self.kept)
        return f"too long: {', '.join(parts) or 'none'}"


def fits_in(model: TrainerModel, tokenizers: Path | None) -> Fits:
    """Return the function that tells whether a caption fits. Raises UsageError if the tokenizer is
    not on this machine."""
    limit = main_limit(limits_of(model.trainer, model.name))
    if limit is None or not limit.tokens:
        return lambda _: True
    folder = tokenizer_folder(limit.tokenizer, tokenizers)
    if folder is None:
        raise UsageError(
            f"--fix counts tokens: {missing_note(limit.tokenizer)}",
            hint="Or name a folder that has it with --tokenizers",
        )
    tokenizer = load_tokenizer(folder)
    return lambda text: lost(tokenizer, limit, text) is None


def shorten(
    run: RecordedRun,
    model: TrainerModel,
    samples: Sequence[TrainedSample],
    fits: Fits,
    display: Display,
    make_launcher: LauncherMaker = DirectLauncher,
) -> Fixed:
    """Make the captions of these samples fit, and write the run's outputs. Raises PenstockError;
    captions that were made stay in the store."""
    config = run.config
    if config.groups.generation.schema:
        raise UsageError(
            "--fix: the captions are JSON of a schema, which is not made shorter",
            hint="Caption again with maxLength in the schema",
        )
    texts = {
        text
        for sample in samples
        for text, read in zip(sample.captions, read_texts(sample), strict=True)
        if not fits(read)
    }
    opened = ReviewedCaptions(Path(config.out), config.store, trust=config.trust_folder)
    with closing(opened) as captions:
        as_written = captions.folder.as_written
        rows, edits = captions.folder.rows, captions.edits()
        now = {key: edits.get(key, UNTOUCHED) for key in rows}
        long = {
            key
            for key, row in rows.items()
            if as_written(key, now[key].caption or row["said"]) in texts
        }
        own = {key for key in long if now[key] == UNTOUCHED}
        settings = samples[0].settings if samples else None
        read_as = str if settings is None else settings.read_as

        def is_short(key: str, text: str) -> bool:
            """Return whether a text of the model fits as the caption with a key, with what the run
            and the trainer put around it."""
            return fits(read_as(as_written(key, text)))

        if any(not is_short(key, "") for key in own):
            raise UsageError(
                f"{model.label}: the trigger and the prefix alone are too long to be read whole",
                hint="Caption again with shorter ones: no caption fits behind them",
            )
        shorter = _made_again(run, _chunks(captions, own), is_short, display, make_launcher)
        for key in own - shorter.keys():
            if (text := cut_short(rows[key]["said"], partial(is_short, key))) is not None:
                shorter[key] = CUT, text
        _change(captions, shorter, model)
    if shorter or count_unwritten(captions.out):  # also of a `--fix` that was killed
        sift_first.caption(config, display, make_launcher, partial(_keep_command, run))
    return Fixed(
        counts={how: sum(way == how for way, _ in shorter.values()) for how in (*TRIED, CUT)},
        left=len(own) - len(shorter),
        kept=len(long) - len(own),
    )


def _keep_command(run: RecordedRun, _: Job, writer: RecordWriter) -> None:
    """Record the command that wrote the folder, which writes these texts, too."""
    writer.record.command = run.command


def _chunks(captions: ReviewedCaptions, keys: set[str]) -> dict[str, Chunk]:
    """Return the chunk of each caption whose medium is still there. Only its features are read."""
    chunks = dict[str, Chunk]()
    for medium in captions.folder.media:
        place = captions.folder.place_shown(medium["number"])
        is_here = is_address(place) or os.path.exists(place)
        for row in medium["captions"] if is_here else ():
            if row["key"] in keys:
                chunks[row["key"]] = place, round(row["start"], 2), row["prompt"]
    return chunks


def _made_again(
    run: RecordedRun,
    chunks: Mapping[str, Chunk],
    is_short: Callable[[str, str], bool],
    display: Display,
    make_launcher: LauncherMaker,
) -> dict[str, tuple[str, str]]:
    """Return key of a caption → the length of `--length`, and a text that fits."""
    too_long, shorter, now = dict(chunks), dict[str, tuple[str, str]](), run.config.length
    for length in TRIED[TRIED.index(now) + 1 if now in TRIED else 0 :]:
        sentence = f" {LENGTHS[now]}" if now else ""
        prompts = {key: prompt.removesuffix(sentence) for key, (_, _, prompt) in too_long.items()}
        prompts = {key: prompt for key, prompt in prompts.items() if prompt.strip()}
        if not prompts:
            break
        with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
            lines = Path(folder, "long.jsonl")
            pairs = dict.fromkeys((too_long[key][0], prompt) for key, prompt in prompts.items())
            entries = (json_text({"path": path, "prompt": prompt}) for path, prompt in pairs)
            write_text(lines, (f"{entry}\n" for entry in entries))
            again = _alone(run, lines, length)
            run_again(again, display, make_launcher)
            answers = {
                (entry.path, round(row.start, 2), row.prompt): row.original or row.caption
                for entry, rows in media_with_captions(Path(again.out))
                for row in rows
            }
        for key, prompt in prompts.items():
            path, start, _ = too_long[key]
            text = answers.get((path, start, f"{prompt} {LENGTHS[length]}"))
            if text and is_short(key, text):
                shorter[key] = length, text
                del too_long[key]
    return shorter


def _alone(run: RecordedRun, lines: Path, length: str) -> CaptionConfig:
    """Return the run that captions the files of a list in another length, beside the list. It
    writes the captions alone. Trainers decide how long clips are that `--clip-frames` makes, so a
    run with these keeps them, and cuts none."""
    plain, config = CaptionConfig(sources=(".",)), run.config
    values: dict[str, Any] = {name: getattr(plain, name) for name in DEFAULTS}
    if config.clip_frames:
        values |= {"trainer": config.trainer, "format": config.format, "media": ORIGINAL}
    values |= {"sources": (str(lines),), "out": str(lines.with_name("out")), "length": length}
    return replace(config, **values)


def cut_short(text: str, is_short: Fits) -> str | None:
    """Return a text up to the last end of a sentence with which it fits; None: it has none."""
    for end in reversed([match.end() for match in SENTENCE_END.finditer(text)]):
        if is_short(text[:end]):
            return text[:end]
    return None


def _change(
    captions: ReviewedCaptions, shorter: Mapping[str, tuple[str, str]], model: TrainerModel
) -> None:
    """Write the new texts into the journal, those of one way as one action."""
    for how in (*TRIED, CUT):
        edits = {
            k: Edit(caption=text, unread=True) for k, (way, text) in shorter.items() if way == how
        }
        if edits:
            changes = captions.folder.changes_of(edits)
            does = f"{SHORTENED}{model.label} ({how})"
            captions.add(Action(id=uuid4().hex, time=now(), does=does, changes=changes))
