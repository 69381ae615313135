"""Reads the records of the rounds of `penstock learn` from a run's folder."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from artifacts.digests import digest_of
from artifacts.disk.files import write_json
from artifacts.disk.json_records import read_jsonl_file
from artifacts.disk.json_shapes import (
    Nullable,
    OptionalField,
    count,
    flag,
    moment,
    number,
    read_json,
    string,
    text,
)
from artifacts.options import declared
from artifacts.records.provenance import ROUND, Proof, anybody, note
from flows.core.media.generated_files import digest_at
from flows.core.media.output_rows import CaptionRow
from flows.core.options.training import StepOptions
from stages.models.adapter_modules import ADAPTER_CONFIG, ADAPTER_WEIGHTS

LEARN: Final = "learn"
"""Folder of the rounds in a run's folder."""
ROUND_RECORD: Final = "round.json"
ADAPTER: Final = "adapter"
"""Folder of a round's adapter."""
CHOSEN, TRAINED, SCORED, RECAPTIONED, CARRIED, DONE = PHASES = (
    "chosen",
    "trained",
    "scored",
    "recaptioned",
    "carried",
    "done",
)
"""What of a round is done: examples chosen, adapter trained, adapter scored, captions made in the
store, decisions kept under the new words, outputs written. A refused adapter ends after its
score."""
LEAST_MEDIA, FEW_MEDIA = 4, 10
"""Media without which no adapter is accepted, since three are all better by chance once in eight
times, and below which the test is weak."""
CAPTION_AGAIN = "Run the same `penstock caption` again, which rewrites it"
RUN_AGAIN = "Restore the file, or delete the folder of the round to leave the round out"


SETTINGS = {
    d.name: Nullable(text if d.kind is str else number)
    for d in declared(StepOptions)
    if d.name != "recompute"
}
"""Shape of the options that decide an adapter. No others are taken from a record."""
EXAMPLE = {
    **dict.fromkeys(("key", "features", "name", "prompt", "caption", "media_path"), text),
    "start": number,
    "corrected": flag,
    "medium": OptionalField(text),
}
SCORED_EXAMPLE = {"loss": number, "tokens": count, "exact": flag}
SHAPE = {
    "round": count,
    "phase": lambda value: value in PHASES,
    "started": moment,
    "digest": text,
    "previous": text,
    "trained": text,
    "settings": SETTINGS,
    "command": Nullable({"words": [string], "folder": string}),
    "examples": [EXAMPLE],
    "held_out": [EXAMPLE],
    "differing": [text],
    "enough": flag,
    "before": [SCORED_EXAMPLE],
    "after": [SCORED_EXAMPLE],
    "lower": count,
    "accepted": flag,
    "captions": count,
    "changed": count,
    "carried": count,
}
"""Shape of `round.json`. `before` and `after` are the scores of the held-out captions, in their
order; `trained` is the digest of its adapter; `lower` counts the bootstrap samples in which the new
adapter's loss is lower."""
Round = dict[str, Any]


def round_folder(out: Path, number: int) -> Path:
    return out / LEARN / f"round-{number:03d}"


def rounds_in(out: Path, proof: Proof = anybody) -> list[Round]:
    """Return the rounds of a run's folder that are proved, the last one last. Raises
    EnvironmentFault."""
    paths = (out / LEARN).glob(f"round-*/{ROUND_RECORD}")
    rounds = [read_json(path, SHAPE, RUN_AGAIN) for path in paths]
    return sorted(filter(proof, rounds), key=lambda round_: round_["round"])


def write_round(out: Path, round_: Round, store: str) -> None:
    """Write the record of a round, noted in `store` too. Raises EnvironmentFault."""
    note(ROUND, round_, store)
    write_json(round_folder(out, round_["round"]) / ROUND_RECORD, round_)


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
    if not rounds or rounds[-1]["phase"] != CHOSEN:
        return rounds
    lines = read_jsonl_file(CaptionRow, out / "captions.jsonl", CAPTION_AGAIN)
    captioned, last = {line.features for line in lines}, rounds[-1]
    chosen = {example["features"] for example in (*last["examples"], *last["held_out"])}
    is_stuck = missing_adapter(out, last["previous"]) or not chosen <= captioned
    return rounds[:-1] if is_stuck else rounds


def unfinished(rounds: Sequence[Round]) -> Round | None:
    """Return the round that a killed process left; None if all ended."""
    return rounds[-1] if rounds and rounds[-1]["phase"] != DONE else None


def loss_of(scores: Sequence[Mapping[str, Any]]) -> float:
    """Return the mean loss per token of scored captions."""
    tokens = sum(score["tokens"] for score in scores)
    return float(sum(score["loss"] for score in scores) / max(1, tokens))


def corrections_of(round_: Round, name: str) -> list[Mapping[str, Any]]:
    """Return the scores `before` or `after` of the held-out corrections; of all held-out captions
    if none of them was corrected."""
    pairs = list(zip(round_["held_out"], round_[name], strict=False))
    return [score for example, score in pairs if example["corrected"]] or round_[name]


def corrections_in(examples: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Return the corrected ones of some examples; all if none was corrected."""
    return [example for example in examples if example["corrected"]] or examples


def medium_of(example: Mapping[str, Any]) -> str:
    """Return the identity of an example's medium."""
    return str(example.get("medium") or example["media_path"])


def media_held(round_: Round) -> int:
    """Return the number of media that a round tests its adapter on."""
    return len({medium_of(example) for example in round_["held_out"]})


def is_weak(round_: Round) -> bool:
    """Return whether a round tests its adapter on few media."""
    return media_held(round_) < FEW_MEDIA


def exact(scores: Sequence[Mapping[str, Any]]) -> int:
    """Return the number of captions that were generated exactly."""
    return sum(score["exact"] for score in scores)


COLUMNS = ("round", "learned from", "held out", "loss", "exact", "adapter", "captions changed")


def cells(round_: Round) -> tuple[str, ...]:
    """Return a round as table cells."""
    scores = [corrections_of(round_, name) for name in ("before", "after")]
    losses, exacts = map(loss_of, scores), [str(exact(round_[n])) for n in ("before", "after")]
    scored = bool(round_["after"])
    return (
        str(round_["round"]),
        str(len(round_["examples"])),
        str(len(round_["held_out"])),
        " to ".join(f"{loss:.4f}" for loss in losses) if scored else "-",
        " to ".join(exacts) if scored else "-",
        verdict(round_),
        str(round_["changed"]) if round_["accepted"] else "-",
    )


def verdict(round_: Round) -> str:
    """Return what became of a round's adapter."""
    if round_["phase"] != DONE:
        return f"unfinished ({round_['phase']})"
    if not round_["enough"]:
        return "not accepted: too few corrections or media"
    return "accepted" if round_["accepted"] else "not accepted: not better"


def summary_json(rounds: Sequence[Round]) -> Iterator[dict[str, Any]]:
    """Yield each round without its examples, for programs."""
    for round_ in rounds:
        kept = ("round", "phase", "started", "enough", "accepted", "lower", "captions", "changed")
        scores = {
            name: {"loss": loss_of(corrections_of(round_, name)), "exact": exact(round_[name])}
            for name in ("before", "after")
            if round_[name]
        }
        counts = {"examples": len(round_["examples"]), "held_out": len(round_["held_out"])}
        counts |= {"held_out_media": media_held(round_), "weak_test": is_weak(round_)}
        yield {**{name: round_[name] for name in kept}, **counts, **scores}
