"""The rungs that a command leaves to each stage, cheapest first; estimates nothing."""

from artifacts.schema import Half
from flows.job.config import CaptionConfig
from flows.job.models import Model
from flows.job.precision import QUANTIZED, HalfSettings
from flows.planning.choose import Question
from flows.planning.rungs import Rung, decode_rungs, encode_rungs, frames_rungs
from stages.process.cgroup import cores


def rungs_of(question: Question) -> dict[str, list[Rung]]:
    """Stage → its rungs."""
    return rungs_for(question.model, question.config, question.device)


def rungs_for(model: Model, config: CaptionConfig, device: str) -> dict[str, list[Rung]]:
    """The rungs of each stage. What changes words, or takes many times as long, is among them only
    under `auto`."""
    card, most = model.card, config.batch_size
    vision, language = _settings(model, config, "vision"), _settings(model, config, "language")
    # What is quantized cannot come layer by layer, and pixels have no weights.
    whole = card.route != "joint"
    plain = not card.vision.stored_as and vision[0].precision not in QUANTIZED
    return {
        "frames": frames_rungs(cores()),
        "encode": encode_rungs(
            most,
            [half.precision for half in vision],
            streamed=whole and plain and card.vision.layers > 1,
            weights=whole,
        ),
        "decode": decode_rungs(
            most,
            [(half.precision, half.kv) for half in language],
            on_gpu=device.startswith("cuda"),
            offload=is_free(config, "language") and not card.language.stored_as,
        ),
    }


def _settings(model: Model, config: CaptionConfig, half: Half) -> tuple[HalfSettings, ...]:
    every = model.settings(half)
    return every if is_free(config, half) else every[:1]


def is_free(config: CaptionConfig, half: Half) -> bool:
    """Whether a half may be run in whatever fits."""
    own = config.vision_precision if half == "vision" else config.language_precision
    return (own or config.precision) == "auto"
