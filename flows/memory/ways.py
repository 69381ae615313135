"""The rungs that a command leaves to each stage, cheapest first; estimates nothing."""

from flows.config import CaptionConfig
from flows.memory.choose import Question
from flows.memory.rungs import Rung, decode_rungs, encode_rungs, frames_rungs
from flows.models import cores


def rungs_of(question: Question) -> dict[str, list[Rung]]:
    """Stage → its rungs."""
    config, model = question.config, question.model
    seen = [model.vision.precision]
    read = [(model.language.precision, "")]
    on_gpu = question.device.startswith("cuda")
    return {
        "frames": frames_rungs(cores()),
        "encode": encode_rungs(config.batch_size, seen, offload=_is_free(config, "vision")),
        "decode": decode_rungs(
            config.batch_size, read, on_gpu=on_gpu, offload=_is_free(config, "language")
        ),
    }


def _is_free(config: CaptionConfig, half: str) -> bool:
    """Whether a half may be run in whatever fits."""
    own = config.vision_precision if half == "vision" else config.language_precision
    return (own or config.precision) == "auto"
