"""From a job to its ladder: which rungs there are for its model, device and options, and where it
starts; starts no stage."""

from flows.memory.ladder import Ladder, Told
from flows.memory.remembered import Remembered
from flows.memory.rungs import Rung, decode_rungs, encode_rungs, frames_rungs
from flows.models import cores
from flows.prepare import Job
from stages.process.memory import device_uuid


def rungs_of(job: Job) -> dict[str, list[Rung]]:
    """The rungs of each stage, cheapest first. What changes words, or takes many times as long, is
    among them only under `auto`."""
    config, card = job.config, job.model.card
    asked = {"vision": config.vision_precision, "language": config.language_precision}
    auto = {half: (given or config.precision) == "auto" for half, given in asked.items()}
    vision, language = job.model.settings("vision"), job.model.settings("language")
    return {
        "frames": frames_rungs(cores()),
        "encode": encode_rungs(
            config.batch_size,
            [half.precision for half in vision],
            # What was saved quantized cannot be offloaded.
            offload=auto["vision"] and not card.vision.stored_as and card.route != "joint",
        ),
        "decode": decode_rungs(
            config.batch_size,
            [(half.precision, half.kv) for half in language],
            on_gpu=job.device.startswith("cuda"),
            offload=auto["language"] and not card.language.stored_as,
        ),
    }


def ladder_of(job: Job, tell: Told) -> Ladder:
    """The ladder of a run over a job; `tell` is given what happens on it."""
    model, frames = job.model, job.ledger.scopes.frames
    here = [device_uuid(job.device), frames]
    # What each half may be run in is among it: below all that one ladder has there is nothing that
    # another one, which has more, could be told.
    vision, language = (
        [settings.decides for settings in model.settings(half)] for half in ("vision", "language")
    )
    about = {
        "frames": here,
        "encode": [*here, model.vision_digest, vision],
        "decode": [*here, model.language_digest, language, job.config.max_new_tokens],
    }
    remembered = Remembered(job.store, about, job.budget.bytes)
    return Ladder(rungs_of(job), remembered, budget_bytes=job.budget.bytes, tell=tell)
