"""What each precision costs the demo model: its score on clips it never saw, how often its words
are those of 32 bit, and how far its logits go from those; prints a table.

Every row is a whole run: clips are cut, encoded and decoded by stages that load their halves in
that row's precision. Then the words of the first row are put through each row's language half,
which sees the features of its own run.

    python -m benchmarks.quantization [--clips 200] [--seed 11]
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks._common import cells, heads
from flows.console.display import Display
from flows.console.lines import size
from flows.job.prepare import Job, prepare
from flows.machine.launch import DirectLauncher
from flows.options.commands import CaptionConfig
from flows.options.model import DEMO_MODEL
from flows.running.run import caption
from penstock_demo.clips import write_clips
from penstock_demo.scoring import Truth, score_captions
from stages.decode.generate_kwargs import make_greedy
from stages.decode.protocol import read_features
from stages.models.halves.features import Features
from stages.models.halves.offload import generate, new_tokens
from stages.models.halves.records import FeatureRecord, merge_blank, merge_rows
from stages.models.loading import ModelJob
from stages.models.processors.prepare import rebuild

HEADS = (
    "precision | vision | language | weights | exact | captions as fp32 | tokens as fp32"
    " | divergence"
)
BATCH = 16
ROWS = ("fp32", "bf16", "int8", "nf4")
"""Precisions of the language half; the vision half is native, or in 32 bit beside fp32."""


@dataclass(kw_only=True, slots=True)
class Row:
    """What came of one precision."""

    name: str
    vision: str
    """What the vision half was loaded in, with its quantized and all linear layers."""
    language: str
    weight_bytes: int
    """Of both halves, which are never loaded at once."""
    exact: float
    """Percent of captions that are the truth, word for word."""
    captions: dict[str, str]
    """File → caption."""
    logits: list[torch.Tensor] = field(default_factory=list)
    """Log-probabilities of each caption's tokens, (tokens, vocabulary)."""


def measure(
    name: str,
    clips: Path,
    truths: Sequence[Truth],
    words: Sequence[torch.Tensor] | None,
) -> tuple[Row, list[torch.Tensor]]:
    """One precision, and the tokens of its captions: those given, or else its own."""
    folder = clips.parent
    config = CaptionConfig(
        sources=(str(clips),),
        model=DEMO_MODEL,
        out=str(folder / name),
        store=str(folder / "store"),
        batch_size=BATCH,
        keep_frames=True,
        precision=name,
    )
    out = caption(config, Display(quiet=True)).out
    lines = (out / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    captions = {row["media_path"]: row["caption"] for row in map(json.loads, lines)}
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    row = Row(
        name=name,
        vision=loaded_as(record, "vision", "encode"),
        language=loaded_as(record, "language", "decode"),
        weight_bytes=sum(half["bytes"] for half in record["plan"]["halves"].values()),
        exact=score_captions(truths, captions).groups[0].tallies["exact"].percent,
        captions=captions,
    )
    tokens = list(words or ())
    for spoken, logits in read_out(prepare(config, DirectLauncher(lambda *_: None)), words):
        row.logits.append(logits)
        if words is None:
            tokens.append(spoken)
    return row, tokens


def loaded_as(record: dict[str, Any], half: str, stage: str) -> str:
    """Such as `nf4 (28 of 29 layers)`; nothing is counted where another row's features did."""
    notes = next(s["notes"] for s in record["stages"] if s["name"] == stage)
    precision = str(record["plan"]["precision"][half])
    quantized = sum(notes.get("quantized_modules", {}).values())
    return (
        f"{precision} ({quantized} of {notes['linear_modules']} layers)" if quantized else precision
    )


def read_out(
    job: Job, words: Sequence[torch.Tensor] | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Tokens and log-probabilities of each caption, in the order of the media; with `words` the
    tokens are those."""
    settings = job.model.best("language")
    source = ModelJob(
        model=str(job.model.folder),
        dtype=settings.dtype,
        precision=settings.precision,
        attention=settings.attention,
    )
    half, processor = source.load("language"), source.processor()
    make_greedy(half, processor)
    tasks = job.ledger.tasks(job.media)
    rows = [read_features(job.ledger["features"], task["features"]) for task in tasks]
    found: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for indexes in batches(rows):
        together = [rows[index] for index in indexes]
        inputs = rebuild(processor, together, [tasks[index].medium.prompt for index in indexes])
        text = None if words is None else [words[index] for index in indexes]
        seen = Features(merge_rows(together), together[0].needs, merge_blank(together))
        made = spoken(half, inputs, seen, text)
        found.update(zip(indexes, made, strict=True))
    yield from (found[index] for index in range(len(rows)))


def batches(rows: Sequence[FeatureRecord]) -> Iterator[list[int]]:
    """Indexes of rows that can be decoded together."""
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(row.joins_with(), []).append(index)
    for group in groups.values():
        yield from (group[start : start + BATCH] for start in range(0, len(group), BATCH))


def spoken(
    half: Any, inputs: Any, features: Features, words: Sequence[torch.Tensor] | None
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    ends = half.generation_config.eos_token_id
    ends = [ends] if isinstance(ends, int) else ends
    options: dict[str, Any] = {"output_logits": True, "return_dict_in_generate": True}
    if words is not None:
        options["logits_processor"] = [Dictated(words, ends[0])]
    made: Any = generate(half, inputs, features, max_new_tokens=64, **options)
    tokens = new_tokens(made.sequences, inputs["input_ids"])
    logits = torch.stack(made.logits, dim=1).float().log_softmax(-1)
    rows = []
    for row, (message, given) in enumerate(zip(tokens, logits, strict=True)):
        stops = torch.isin(message, torch.tensor(ends)).nonzero()
        length = int(stops[0]) + 1 if len(stops) else len(message)
        assert words is None or torch.equal(message[:length], words[row])
        rows.append((message[:length], given[:length]))
    return rows


def agreement(row: Row, tokens: Sequence[torch.Tensor]) -> float:
    """Percent of the tokens that this precision finds most likely where 32 bit said them."""
    same = [(own.argmax(-1) == text) for own, text in zip(row.logits, tokens, strict=True)]
    return 100 * float(torch.cat(same).float().mean())


def divergence(row: Row, first: Row) -> float:
    """Mean Kullback-Leibler divergence from 32 bit to this precision, in nats a token."""
    pairs = zip(first.logits, row.logits, strict=True)
    return float(torch.cat([(p.exp() * (p - q)).sum(-1) for p, q in pairs]).mean())


def line(row: Row, first: Row, tokens: Sequence[torch.Tensor]) -> str:
    """One line of the table, in Markdown."""
    same = sum(row.captions[name] == text for name, text in first.captions.items())
    figures = [
        f"{row.exact:.1f} %",
        f"{100 * same / len(first.captions):.1f} %",
        f"{agreement(row, tokens):.2f} %",
        f"{divergence(row, first):.5f}",
    ]
    return cells([row.name, row.vision, row.language, size(row.weight_bytes), *figures])


class Dictated:
    """Makes `generate` say given tokens, while the model's own logits are kept."""

    def __init__(self, tokens: Sequence[torch.Tensor], end: int) -> None:
        longest = max(len(row) for row in tokens)
        padded = [torch.nn.functional.pad(r, (0, longest - len(r)), value=end) for r in tokens]
        self._tokens = torch.stack(padded)
        self._step = 0

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        expected = self._tokens[:, self._step].to(scores.device)
        self._step += 1
        return torch.full_like(scores, -torch.inf).scatter(1, expected[:, None], 0.0)


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--clips", type=int, default=200)
    options.add_argument("--seed", type=int, default=11)
    options.add_argument("--rows", nargs="*", choices=ROWS, default=ROWS)
    given = options.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        clips = Path(folder, "clips")
        truths = write_clips(clips, given.clips, given.seed)
        (clips / "truth.jsonl").unlink()  # not a list of sources
        first, tokens = measure("fp32", clips, truths, None)
        print(f"{given.clips} clips, seed {given.seed}, {sum(map(len, tokens))} tokens")
        print(f"{heads(HEADS)}\n{line(first, first, tokens)}")
        for name in (name for name in given.rows if name != "fp32"):
            row, _ = measure(name, clips, truths, tokens)
            print(line(row, first, tokens), flush=True)


if __name__ == "__main__":
    main()
