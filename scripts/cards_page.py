"""Writes the page of models and cards from their plans."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence

from benchmarks._common import cells, heads
from flows.planning.choose import StagePlan
from scripts.cards_plan import (
    CARDS_GB,
    GIB,
    PlannedModel,
    allowed_bytes,
    fits,
    is_offloaded,
    largest,
)

PARTS = {"weight": "weights", "activation": "computing", "kv": "KV cache"}
"""Part of an estimate → its name on the page."""
OPENING = """# Cards and models

Which public models fit on a card of 24, 16, 12, 8, 6 or 4 GB, in which precision, and what limits
them. `python -m scripts.cards` makes this page; a test says when it is old.

**All figures are planned. No card has confirmed them.** For each model, the script builds its
transformers class without weights, from the published configuration in
`scripts/card_models.json`. It stops if the count of its parameters is not the one
that is noted there with its source. Then it calls the functions of `penstock plan`. A card of 24 GB
has 24·10⁹ bytes, and a run takes at most 95 % of them. If other programs use some of that memory,
read the row of the next smaller card. To plan one row again:

    penstock plan --model Qwen/Qwen3-VL-4B-Instruct --precision auto --memory 15.2GB

A plan without files assumes full chunks of a Full HD video: 30 s, in as many frames as the
model's processor states and its context holds. It asks for captions of up to 256 tokens, 8
chunks at once in encode, and 64 in decode. The stand-in for the tokenizer makes one token of each
byte of a template, so a real prompt is slightly shorter.

## The largest that fit

`penstock plan` names these for the memory that it finds. "Largest" means most parameters among
the models below that caption with weights and KV cache on the card; whether its captions are
better was not measured. The last column is for a model that is larger still, in fewer bits."""
MODELS = """## The models

Weights are those of the checkpoint's own precision. "KV" is the size of the cache for one token in
16 bit. "Prompt" is the tokens of a chunk with its frames. "Context" is the most that the model
reads and writes."""
TABLES = """Each table below has the models that fit, largest first. Precision and chunks at once
are those of encode / decode; peaks are in GiB. "Limited by" is the largest part of what a stage
would have taken with the most chunks in its own precision. "So" is what was done besides fewer
chunks and fewer bits. A KV cache in host memory is 2 to 5 times slower. int8 and nf4 change some
words."""


def page(planned: Sequence[PlannedModel]) -> str:
    """Return the text of the page."""
    ordered = sorted(planned, key=lambda each: -each.model.parameters)
    parts = [OPENING, "\n".join(_largest(ordered)), MODELS, "\n".join(_models(ordered)), TABLES]
    for card in CARDS_GB:
        parts += [f"## {card} GB", *_card(ordered, card)]
    return "\n\n".join(parts) + "\n"


def _largest(planned: Sequence[PlannedModel]) -> Iterator[str]:
    yield heads("card | unquantized | with `--precision auto`")
    for card, row in zip(CARDS_GB, largest(planned)["gpu"], strict=True):
        names = (str(row.get(key, "")) for key in ("unquantized", "quantized"))
        yield cells([f"{card} GB", *names])


def _models(planned: Sequence[PlannedModel]) -> Iterator[str]:
    parts = "vision, GiB | language, GiB | KV, bytes"
    yield heads(f"model | parameters | {parts} | frames | prompt | context")
    yield from map(_model_row, planned)


def _model_row(each: PlannedModel) -> str:
    halves = [half.stored_bytes for half in each.profile.parts.values()]
    load, memory = each.request.workloads[0], each.profile.language.row_memory
    return cells(
        [
            each.model.name,
            f"{each.model.parameters / 1e9:.2f} B",
            *(_gib(size) for size in halves),
            f"{memory.bytes(1, 2):,}" if memory else "",
            load.frames,
            f"{load.tokens:,}" if each.captions else "",
            f"{each.profile.context_tokens:,}" if each.captions else "",
        ]
    )


def rows_of(each: PlannedModel) -> list[str]:
    """Return the rows of one model, in all tables of models."""
    return [_model_row(each), *(_planned_row(each, p) for p in each.gpu.values() if fits(p))]


def _card(planned: Sequence[PlannedModel], card: int) -> Iterator[str]:
    """Return the table of one card, and what does not fit."""
    yield f"{_gib(allowed_bytes(card))} GiB allowed."
    rows = [_planned_row(each, each.gpu[card]) for each in planned if fits(each.gpu[card])]
    names = "model | precision | at once | encode | decode | limited by | so"
    yield "\n".join([heads(names), *rows])
    elsewhere = [
        each
        for each in planned
        if is_offloaded(each.gpu[card]) and all(plan.fits for plan in each.gpu[card].values())
    ]
    unfit = [each for each in planned if not all(p.fits for p in each.gpu[card].values())]
    if elsewhere:
        yield _names("Only with weights in host memory, 40 times slower and more", elsewhere)
    if unfit:
        yield _names("Does not fit", unfit)


def _names(what: str, models: Sequence[PlannedModel]) -> str:
    names = ", ".join(each.model.name for each in models)
    return textwrap.fill(f"{what}: {names}.", 100, break_long_words=False, break_on_hyphens=False)


def _planned_row(each: PlannedModel, plans: Mapping[str, StagePlan]) -> str:
    taken = [plan.chosen for plan in plans.values()]
    peaks = [_gib(estimate.peak_bytes) for estimate in taken]
    return cells(
        [
            each.model.name,
            " / ".join(estimate.rung.precision for estimate in taken),
            " / ".join(str(estimate.rung.batch) for estimate in taken),
            *peaks,
            *[""] * (2 - len(peaks)),
            "; ".join(filter(None, map(_limit, plans.values()))),
            "; ".join(filter(None, map(_measure, plans.values()))),
        ]
    )


def _limit(plan: StagePlan) -> str:
    """Return the largest part of a stage that is not run as it was asked for."""
    if plan.chosen.rung == plan.requested.rung:
        return ""
    part = max(PARTS, key=lambda name: int(getattr(plan.requested, f"{name}_bytes")))
    return f"{plan.chosen.rung.stage}: {PARTS[part]}"


def _measure(plan: StagePlan) -> str:
    """Return what a stage does besides smaller batches and fewer bits."""
    rung = plan.chosen.rung
    measures = [
        f"{rung.prefill} tokens at a time" if rung.prefill else "",
        "KV cache in host memory" if rung.kv == "offloaded" else "",
        "KV cache quantized" if rung.kv == "quantized" else "",
        "layers streamed" if rung.block else "",
    ]
    found = ", ".join(filter(None, measures))
    return f"{rung.stage}: {found}" if found else ""


def _gib(count: int) -> str:
    return f"{count / GIB:.2f}"
