"""Runs of the model with recorded decode steps, beside one with plain ones, and what its stages
computed at the same time."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from scripts.prove.gpu_check.model import CHUNK_SECONDS, NEW_TOKENS, TOKENS, of_model
from scripts.prove.gpu_check.rows import DEMO, Row, Setting, message_of, one_line, row, skipped
from scripts.prove.gpu_check.whole import Run, alike, good_run

PROMPT = "Describe this video in detail, step by step."
STORE = "recorded"
PLAIN, RECORDED, BESIDE = "plain-steps", "recorded-steps", "beside-encode"
"""Runs: with plain steps; with recorded ones, over the features of the first; and with nothing
stored."""
SAMPLED = "sampled"
"""A run like RECORDED, with settings that select tokens otherwise than by the largest logit."""
SETTINGS = (
    *("--temperature", "0.7", "--top-p", "0.9", "--no-repeat-ngram", "3"),
    *("--presence-penalty", "0.5", "--avoid", "there is"),
)
SPENT = ("import", "load", "check", "prefill")
"""What a decode stage notes the seconds of; its steps take the others."""
TOGETHER_SECONDS = 1.0
"""Seconds from which stages have run beside each other: their times are rounded."""


def _captioned(setting: Setting, folder: Path, name: str) -> Run:
    """Caption the samples, whose features may be stored and whose captions are not."""
    from stages.memory.cuda_graphs import SWITCH

    store = name if name == BESIDE else STORE
    shutil.rmtree(setting.folder / f"{store}-store" / "captions", ignore_errors=True)
    return good_run(
        setting,
        name,
        *(str(setting.media), "--model", str(folder), "--prompt", PROMPT),
        *(("--chunk", CHUNK_SECONDS) if setting.model == DEMO else ()),
        *("--engine", "inflight", "--max-new-tokens", str(TOKENS.get(setting.size, NEW_TOKENS))),
        *(SETTINGS if name == SAMPLED else ()),
        env={SWITCH: "0"} if name == PLAIN else {},
        store=store,
    )


@of_model("captions, recorded steps beside plain ones")
def captions(setting: Setting, folder: Path) -> Iterator[Row]:
    """Whether captions are the same, and how fast both are."""
    plain, recorded = (_captioned(setting, folder, name) for name in (PLAIN, RECORDED))
    name = "captions, recorded steps beside plain ones"
    yield alike(name, recorded.captions, plain.captions)
    rates = [_rate(done) for done in (plain, recorded)]
    notes = recorded.stage("decode").notes
    counts, reason = notes.get("recorded", {}), notes.get("recorded_reason", "")
    found = f"{counts.get('replayed', 0)} of {counts.get('steps', 0)}"
    found += f" in {counts.get('recordings', 0)} recordings; " + f"{one_line(reason)}; " * bool(
        reason
    )
    found += f"{rates[1]:,.0f} tokens/s of decode with loading, {rates[0]:,.0f} plain; "
    spent = [_spent(done) for done in (recorded, plain)]
    words = [", ".join(f"{part} {seconds:.1f}" for part, seconds in one.items()) for one in spent]
    found += f"seconds: {words[0]}; of the plain run: {words[1]}"
    figures = {"tokens_per_second": rates[1], "plain_tokens_per_second": rates[0], **counts}
    figures |= {"spent": spent[0], "plain_spent": spent[1]}
    good = bool(counts.get("replayed")) and not reason
    yield row("steps of a run that are replayed", "nearly all", found, good, **figures)


@of_model("captions, sampled")
def sampled(setting: Setting, folder: Path) -> Iterator[Row]:
    """How fast tokens are selected with settings, beside greedy ones."""
    greedy, done = (_captioned(setting, folder, name) for name in (RECORDED, SAMPLED))
    found = f"{_rate(done):,.0f} tokens/s of decode with loading, {_rate(greedy):,.0f} greedy"
    figures = {"tokens_per_second": _rate(done), "greedy_tokens_per_second": _rate(greedy)}
    yield message_of("captions, sampled with penalties and avoided words", found, **figures)


def _spent(done: Run) -> dict[str, float]:
    """Return the seconds of decode, by what they were spent on as far as that is noted."""
    stage = done.stage("decode")
    parts = {part: stage.notes.get(f"{part}_seconds", 0.0) for part in SPENT}
    return parts | {"all": stage.seconds}


def _rate(done: Run) -> float:
    """Return the tokens per second of decode, its loading included."""
    stage = done.stage("decode")
    return float(stage.tokens / stage.seconds)


@of_model("decode beside encode")
def beside(setting: Setting, folder: Path) -> Iterator[Row]:
    """Whether decode begins before encode has ended. Captions are those of stored features, which
    were encoded without recordings."""
    done, alone = (_captioned(setting, folder, name) for name in (BESIDE, RECORDED))
    yield alike(
        "captions, with nothing stored beside stored features", done.captions, alone.captions
    )
    encode, decode = (done.stage(name) for name in ("encode", "decode"))
    together = _together(encode.spans, decode.spans)
    ended = str(decode.notes.get("beside_ended", ""))
    if together < TOGETHER_SECONDS:
        why = one_line(ended) or "decode began when encode had ended"
        yield skipped("decode beside encode", why)
        return
    spans = [*encode.spans, *decode.spans]
    both = max(span[1] for span in spans) - min(span[0] for span in spans)
    seconds = alone.stage("decode").seconds
    found = f"{together:.1f} s at once: encode {encode.seconds:.1f} s, "
    found += f"decode {decode.seconds:.1f} s, both {both:.1f} s; decode alone {seconds:.1f} s"
    figures = {
        "together_seconds": together,
        "encode_seconds": encode.seconds,
        "decode_seconds": decode.seconds,
        "both_seconds": both,
        "decode_alone_seconds": seconds,
    }
    found += f"; ended early: {one_line(ended)}" * bool(ended)
    yield row("decode beside encode", "at once", found, not ended, **figures)


def _together(some: Sequence[Any], others: Sequence[Any]) -> float:
    """Return the seconds in which processes of both stages were there."""
    pairs = ((one, other) for one in some for other in others)
    return float(sum(max(0.0, min(a[1], b[1]) - max(a[0], b[0])) for a, b in pairs))
