"""Says for docs/models.md how many frames of a chunk of 30 s the context of a family's published
checkpoints holds: by what their authors state and by how many tokens a frame is to them."""

from collections.abc import Mapping
from dataclasses import dataclass

UNKNOWN = "unknown"
SECONDS = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameFacts:
    """A frame of 1080p to the published checkpoints of a family, and how many there are."""

    tokens: int
    """Tokens of a frame, with the words about it."""
    fps: float = 1.0
    """Frames a second that a run takes by default: as the processor states, else one."""
    frames: int = 0
    """Frames of a chunk that it takes instead; 0: by `fps`."""
    source: str
    """Where these numbers stand."""

    @property
    def wanted(self) -> int:
        """Return the frames of a chunk that a run takes by default."""
        return self.frames or round(SECONDS * self.fps)


_QWEN2 = FrameFacts(
    tokens=360, source="30 frames of 560x1008: qwen-vl-utils' 768 tokens a pair at the most"
)
_QWEN3 = FrameFacts(
    tokens=195, fps=2.0, source="60 frames are 11,700 within 25,165,824 pixels a video"
)
FRAMES: Mapping[str, FrameFacts] = {
    "ernie4_5_vl_moe": FrameFacts(
        tokens=598, fps=2.0, source="1,196 tokens a pair: Ernie4_5_VLMoeVideoProcessor.size"
    ),
    "glm4v": FrameFacts(
        tokens=1875, frames=16, source="30,000 tokens a video: Glm4vVideoProcessor.size, num_frames"
    ),
    "llava": FrameFacts(tokens=577, source="24 x 24 patches of 14 in 336 pixels, and a line's end"),
    "llava_next_video": FrameFacts(tokens=144, source="24 x 24 patches, pooled by 2 x 2"),
    "llava_onevision": FrameFacts(tokens=196, source="27 x 27 patches, pooled to 14 x 14"),
    "qwen2_5_vl": _QWEN2,
    "qwen2_vl": _QWEN2,
    "qwen3_5": _QWEN3,
    "qwen3_5_moe": _QWEN3,
    "qwen3_vl": _QWEN3,
    "qwen3_vl_moe": _QWEN3,
    "smolvlm": FrameFacts(tokens=93, source="81 tokens of SmolVLM2-2.2B and its time in words"),
    "video_llava": FrameFacts(tokens=257, source="16 x 16 patches in 224 pixels, and a class"),
}
"""Family → what is known; families whose context is not known need no entry."""


def in_context(family: str) -> str:
    """Return how many frames of a chunk the context holds of those that a run takes by default,
    such as `5 of 30`."""
    from flows.checkpoint.context import tokens_for_frames
    from stages.models.published_facts import facts_of

    known, context = FRAMES.get(family), facts_of(family).context
    if known is None or not context:
        return UNKNOWN
    fitting = tokens_for_frames(context) // known.tokens
    return f"{min(fitting, known.wanted)} of {known.wanted}"
