"""Reads the records of the rounds of `penstock learn` from a run's folder."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

from artifacts.digests import digest_of
from artifacts.disk.files import write_json
from artifacts.disk.json_records import json_of, read_json_file, read_jsonl_file
from artifacts.disk.json_shapes import Json
from artifacts.disk.json_types import Count, Number, Text
from artifacts.options import declared
from artifacts.records.provenance import ROUND, Proof, anybody, note
from flows.core.machine.versions import seconds_of
from flows.core.media.generated_files import digest_at
from flows.core.media.output_rows import CaptionRow
from flows.core.options.training import CommandRecord, StepOptions
from stages.models.adapter_modules import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from stages.tune.record import CaptionScore

LEARN: Final = "learn"
"""Folder of the rounds in a run's folder."""
ROUND_RECORD: Final = "round.json"
ADAPTER: Final = "adapter"
"""Folder of a round's adapter."""
Phase = Literal["chosen", "trained", "scored", "recaptioned", "carried", "done"]
CHOSEN, TRAINED, SCORED, RECAPTIONED, CARRIED, DONE = PHASES = get_args(Phase)
"""What of a round is done: examples chosen, adapter trained, adapter scored, captions made in the
store, decisions kept under the new words, outputs written. A refused adapter ends after its
score."""
LEAST_MEDIA, FEW_MEDIA = 4, 10
"""Media without which no adapter is accepted, since three are all better by chance once in eight
times, and below which the test is weak."""
CAPTION_AGAIN = "Run the same `penstock caption` again, which rewrites it"
RUN_AGAIN = "Restore the file, or delete the folder of the round to leave the round out"


KINDS = {d.name: d.kind for d in declared(StepOptions) if d.name != "recompute"}
"""Option that decides an adapter → its type. No others are taken from a record."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundExample:
    """A caption that a round learns from, or holds out."""

    key: Text
    features: Text
    name: Text
    prompt: Text
    caption: Text
    media_path: Text
    start: Number
    corrected: bool
    """Whether a person wrote it; otherwise it was accepted."""
    medium: Text = ""

    @property
    def identity(self) -> str:
        """Return the identity of its medium."""
        return self.medium or self.media_path


@dataclass(kw_only=True, slots=True)
class Round:
    """The record of a round."""

    round: Count
    """Its number."""
    phase: Phase
    started: Text
    digest: Text
    previous: Text
    """Adapter that it continues, relative to the folder of the run if it lies there; empty:
    none."""
    trained: Text = ""
    """Digest of its adapter."""
    settings: dict[Text, Any]
    """Option → its value; `options` has those that count."""
    command: CommandRecord | None
    examples: list[RoundExample]
    held_out: list[RoundExample]
    differing: list[Text]
    """Captions on which journals differ."""
    enough: bool
    """Whether there are enough examples to accept an adapter."""
    before: list[CaptionScore] = field(default_factory=list)
    after: list[CaptionScore] = field(default_factory=list)
    """Scores of the held-out captions, in their order, by the previous model and by the adapter."""
    lower: Count = 0
    """In how many bootstrap samples the new adapter's loss is lower."""
    accepted: bool = False
    captions: Count = 0
    changed: Count = 0
    carried: Count = 0

    def __post_init__(self) -> None:
        """Raises ValueError for a wrong time, and for settings that no round has."""
        seconds_of(self.started)
        for name, kind in KINDS.items():
            if name not in self.settings:
                raise ValueError(f"it has no setting {name}")
            setting, noun = self.settings[name], "text" if kind is str else "number"
            is_kind = isinstance(setting, str if kind is str else (int, float))
            if setting is not None and (not is_kind or isinstance(setting, bool)):
                raise ValueError(f"its setting {name} is not a {noun}")

    @property
    def options(self) -> dict[str, Any]:
        """Return the options that decide its adapter."""
        return {name: self.settings[name] for name in KINDS}

    def corrections(self, scores: Sequence[CaptionScore]) -> Sequence[CaptionScore]:
        """Return the scores of the held-out corrections among these of all held-out captions; all
        if none of them was corrected."""
        pairs = zip(self.held_out, scores, strict=False)
        return [score for example, score in pairs if example.corrected] or scores

    @property
    def media_held(self) -> int:
        """Return the number of media that it tests its adapter on."""
        return len({example.identity for example in self.held_out})

    @property
    def is_weak(self) -> bool:
        """Return whether it tests its adapter on few media."""
        return self.media_held < FEW_MEDIA


def round_folder(out: Path, number: int) -> Path:
    return out / LEARN / f"round-{number:03d}"


def rounds_in(out: Path, proof: Proof = anybody) -> list[Round]:
    """Return the rounds of a run's folder that are proved, the last one last. Raises
    EnvironmentFault."""
    rounds = list[Round]()
    for path in (out / LEARN).glob(f"round-*/{ROUND_RECORD}"):
        stored = read_json_file(dict[str, Any], path, RUN_AGAIN)
        read = read_json_file(Round, path, RUN_AGAIN)
        rounds += [read] if proof(stored) else []
    return sorted(rounds, key=lambda round_: round_.round)


def write_round(out: Path, round_: Round, store: str) -> None:
    """Write the record of a round, noted in `store` too. Raises EnvironmentFault."""
    stored = json_of(round_)
    note(ROUND, stored, store)
    write_json(round_folder(out, round_.round) / ROUND_RECORD, stored)


def adapter_digest(folder: Path) -> str:
    """Return the digest of a round's adapter in this folder."""
    return digest_of([digest_at(folder / name) for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)])


def missing_adapter(out: Path, named: str) -> str:
    """Return the file that an adapter lacks; empty: it has all. `named` is relative to the run's
    folder if it lies there; empty: no adapter."""
    files = [out / named / name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)]
    return next((str(path) for path in files if named and not path.is_file()), "")


def usable_rounds(out: Path, proof: Proof) -> list[Round]:
    """Return the proved rounds without a last one that only chose its examples, and whose previous
    adapter or examples are gone: it is chosen anew. Raises EnvironmentFault."""
    rounds = rounds_in(out, proof)
    if not rounds or rounds[-1].phase != CHOSEN:
        return rounds
    lines = read_jsonl_file(CaptionRow, out / "captions.jsonl", CAPTION_AGAIN)
    captioned, last = {line.features for line in lines}, rounds[-1]
    chosen = {example.features for example in (*last.examples, *last.held_out)}
    is_stuck = missing_adapter(out, last.previous) or not chosen <= captioned
    return rounds[:-1] if is_stuck else rounds


def unfinished(rounds: Sequence[Round]) -> Round | None:
    """Return the round that a killed process left; None if all ended."""
    return rounds[-1] if rounds and rounds[-1].phase != DONE else None


def loss_of(scores: Sequence[CaptionScore]) -> float:
    """Return the mean loss per token of scored captions."""
    tokens = sum(score.tokens for score in scores)
    return sum(score.loss for score in scores) / max(1, tokens)


def exact(scores: Sequence[CaptionScore]) -> int:
    """Return the number of captions that were generated exactly."""
    return sum(score.exact for score in scores)


COLUMNS = ("round", "learned from", "held out", "loss", "exact", "adapter", "captions changed")


def cells(round_: Round) -> tuple[str, ...]:
    """Return a round as table cells."""
    every = (round_.before, round_.after)
    losses = [f"{loss_of(round_.corrections(scores)):.4f}" for scores in every]
    return (
        str(round_.round),
        str(len(round_.examples)),
        str(len(round_.held_out)),
        " to ".join(losses) if round_.after else "-",
        " to ".join(str(exact(scores)) for scores in every) if round_.after else "-",
        verdict(round_),
        str(round_.changed) if round_.accepted else "-",
    )


def verdict(round_: Round) -> str:
    """Return what became of a round's adapter."""
    if round_.phase != DONE:
        return f"unfinished ({round_.phase})"
    if not round_.enough:
        return "not accepted: too few corrections or media"
    return "accepted" if round_.accepted else "not accepted: not better"


def summary_json(rounds: Sequence[Round]) -> Iterator[dict[str, Json]]:
    """Yield each round without its examples, for programs."""
    for round_ in rounds:
        names = ("round", "phase", "started", "enough", "accepted", "lower", "captions", "changed")
        named = {"before": round_.before, "after": round_.after}
        scores = {
            name: {"loss": loss_of(round_.corrections(of)), "exact": exact(of)}
            for name, of in named.items()
            if of
        }
        counts = {"examples": len(round_.examples), "held_out": len(round_.held_out)}
        counts |= {"held_out_media": round_.media_held, "weak_test": round_.is_weak}
        yield {**{name: getattr(round_, name) for name in names}, **counts, **scores}
