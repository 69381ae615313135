"""Writes `docs/cards.md`, and the table from which `penstock plan` names the largest models:
`python -m scripts.pages.cards`. A test says when they are old."""

import json
import tempfile
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flows.core.checkpoint.models import Model, pipeline_for
from flows.core.checkpoint.precision import QUANTIZED, resolve_settings
from flows.core.job.pass_mode import with_planned_pass_mode
from flows.core.machine.budget import GPU_SHARE
from flows.core.options.commands import CaptionConfig
from flows.core.pipelines import CAPTION, EMBED, parts_of
from flows.core.plan.choose import PlanRequest, StagePlan, plan_request_of_model
from flows.core.plan.stage_estimate import Purpose
from flows.core.plan.view import TABLE
from flows.core.plan.what_fits import plans_within
from stages.models.hub.checkpoint import Checkpoint
from stages.models.inspection import describe
from stages.models.profile import ModelProfile
from stages.process.device_limit import CONTEXT_BYTES
from tests.support.builders.card_models import CardModel, card_models, write_checkpoint
from tests.support.builders.common import cells, heads

PAGE = Path(__file__).parents[2] / "docs" / "cards.md"
CARDS_GB = (24, 16, 12, 8, 6, 4)
GIB = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedModel:
    """A model and its plans."""

    model: CardModel
    profile: ModelProfile
    request: PlanRequest
    gpu: Mapping[int, Mapping[str, StagePlan]]
    """GB of a card → name of a stage → its plan, with `--precision auto`."""
    cpu: Mapping[int, Mapping[str, StagePlan]]
    """The same of a CPU that gives as much memory, in 32 bit."""

    @property
    def captions(self) -> bool:
        """Return whether it writes captions; else it makes vectors."""
        return self.profile.route != "dual"


def allowed_bytes(card_gb: int) -> int:
    """Return the bytes that a card allows without `--memory` when all of it is free."""
    return int(card_gb * 10**9 * GPU_SHARE)


def plan_model(model: CardModel, folder: Path) -> PlannedModel:
    """Plan one model for all cards, by the functions of `penstock plan`."""
    checkpoint = write_checkpoint(model, folder / model.name.replace("/", "--"))
    profile = describe(checkpoint)
    request = request_for(model.name, checkpoint, profile, "cuda:0", "auto")
    on_cpu = request_for(model.name, checkpoint, profile, "cpu", "fp32")
    return PlannedModel(
        model=model,
        profile=profile,
        request=request,
        gpu={card: plans_within(request, allowed_bytes(card)) for card in CARDS_GB},
        cpu={card: plans_within(on_cpu, allowed_bytes(card)) for card in CARDS_GB},
    )


def request_for(
    name: str, folder: Path, profile: ModelProfile, device: str, precision: str
) -> PlanRequest:
    """Return what `penstock plan --model NAME --precision P` asks, without what was measured on
    this machine."""
    config = CaptionConfig(sources=(), model=str(folder), precision=precision)
    model = Model(
        name=name,
        checkpoint=Checkpoint(name=name, folder=folder),
        profile=profile,
        digests=dict.fromkeys(profile.parts, ""),
        settings=resolve_settings(config, profile, device),
    )
    pipeline = pipeline_for(model, (CAPTION, EMBED))
    model = with_planned_pass_mode(config, model, device)
    model = model.of_parts(parts_of(pipeline))
    stages = tuple(stage for stage in pipeline if stage.part)
    request = plan_request_of_model(model, config, device, stages)
    return replace(request, context_bytes=CONTEXT_BYTES)


def is_offloaded(plans: Mapping[str, StagePlan]) -> bool:
    """Return whether weights that every token needs lie outside the device."""
    return any(plan.chosen.rung.offload and not plan.chosen.rung.block for plan in plans.values())


def fits(plans: Mapping[str, StagePlan]) -> bool:
    """Return whether all stages fit, and their weights too."""
    return all(plan.fits for plan in plans.values()) and not is_offloaded(plans)


def is_quantized(plans: Mapping[str, StagePlan]) -> bool:
    """Return whether weights or the KV cache are in fewer bits than the checkpoint has."""
    rungs = [plan.chosen.rung for plan in plans.values()]
    return any(rung.precision in QUANTIZED or rung.kv == "quantized" for rung in rungs)


def is_on_device(plans: Mapping[str, StagePlan]) -> bool:
    """Return whether everything fits without layers or a KV cache in host memory."""
    rungs = [plan.chosen.rung for plan in plans.values()]
    return fits(plans) and not any(rung.block or rung.kv == "offloaded" for rung in rungs)


def largest(planned: Sequence[PlannedModel]) -> dict[str, list[dict[str, int | str]]]:
    """Return the table that `penstock plan` reads: the captioner with most parameters for each
    budget."""
    table: dict[str, list[dict[str, int | str]]] = {"gpu": [], "cpu": []}
    for kind, rows in table.items():
        for card in CARDS_GB:
            held = [
                (each.model, plans)
                for each in planned
                if each.captions and is_on_device(plans := getattr(each, kind)[card])
            ]
            held.sort(key=lambda pair: -pair[0].parameters)
            plain = [model for model, plans in held if not is_quantized(plans)]
            row: dict[str, int | str] = {"bytes": allowed_bytes(card)}
            if plain:
                row["unquantized"] = plain[0].name
            if held and held[0][0] not in plain[:1]:
                row["quantized"] = held[0][0].name
            rows.append(row)
    return table


PARTS: dict[Purpose, str] = {"weight": "weights", "activation": "computing", "kv": "KV cache"}
"""Part of an estimate → its name on the page."""
OPENING = """# Cards and models

Which public models fit on a card of 24, 16, 12, 8, 6 or 4 GB, in which precision, and what limits
them. `python -m scripts.pages.cards` makes this page; a test says when it is old.

**All figures are planned. No card has confirmed them.** For each model, the script builds its
transformers class without weights, from the published configuration in
`tests/support/builders/card_models.json`. It stops if the count of its parameters is not the one
that is noted there with its source. Then it calls the functions of `penstock plan`. A card of 24 GB
has 24·10⁹ bytes, and a run takes at most 95 % of them. If other programs use some of that memory,
read the row of the next smaller card. CogVLM2 and EVA-CLIP have no row
here: see [natives.md](natives.md). To plan one row again:

    penstock plan --model Qwen/Qwen3-VL-4B-Instruct --precision auto --memory 15.2GB

A plan without files assumes full chunks of a Full HD video: 30 s, in as many frames as the
model's processor states and its context holds. It asks for captions of up to 256 tokens, 8
chunks at once in encode, and 64 in decode. The stand-in for the tokenizer makes one token of each
byte of a template, so a real prompt is slightly shorter.

## The largest that fit

`penstock plan` names these for the memory that it finds. "Largest" means most parameters among
the models below that caption with weights and KV cache on the card; whether its captions are
better was not measured. The last column is for a model that is larger still, in fewer bits. A
[published 4-bit checkpoint](precision.md#checkpoints-that-other-programs-quantized) (AWQ, GPTQ,
W4A16) takes about as much as the same model with nf4, and is a smaller download."""
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
        yield _names("Only with weights in host memory, 20 to 40 times slower", elsewhere)
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
    part = max(PARTS, key=plan.requested.bytes_of)
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


def plan_all() -> list[PlannedModel]:
    """Plan all models, which takes minutes."""
    with tempfile.TemporaryDirectory() as folder:
        return [plan_model(model, Path(folder)) for model in card_models()]


def table(planned: Sequence[PlannedModel]) -> str:
    """Return the text of the table of the largest models."""
    return json.dumps(largest(planned), indent=1) + "\n"


if __name__ == "__main__":
    planned = plan_all()
    PAGE.write_text(page(planned), encoding="utf-8")
    TABLE.write_text(table(planned), encoding="utf-8")
