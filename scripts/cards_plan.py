"""Plans public models for cards of 24 to 4 GB, by the functions of `penstock plan`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flows.checkpoint.models import Model, pipeline_for
from flows.checkpoint.precision import QUANTIZED, resolve_settings
from flows.job.encode_ways import with_planned_ways
from flows.machine.budget import GPU_SHARE
from flows.options.commands import CaptionConfig
from flows.pipelines import CAPTION, EMBED, parts_of
from flows.planning.choose import PlanRequest, StagePlan, plan_request_of_model
from flows.planning.what_fits import plans_within
from scripts.card_models import CardModel, write_checkpoint
from stages.models.hub.checkpoint import Checkpoint
from stages.models.inspection import describe
from stages.models.profile import ModelProfile
from stages.process.device_limit import CONTEXT_BYTES

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
    model = with_planned_ways(config, model, device)
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
