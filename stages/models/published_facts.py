"""Holds what the authors of published checkpoints state about videos, context and sampling. Each
entry names its source; a fact that no source confirmed is left out, so its field stays empty."""

from collections.abc import Mapping
from dataclasses import dataclass, field

LLAVA_V1_SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
"""System turn of the conversation `llava_v1`."""
HELPFUL = "You are a helpful assistant."
INTERNVL_SYSTEM = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的"  # noqa: RUF001
    "多模态大语言模型。"
)
"""System turn of the conversation `internvl2_5`, with which InternVL 2.5 and 3 were trained."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FamilyFacts:
    """What the authors of a family of checkpoints state; an empty field is not known."""

    pixels_a_frame: tuple[int, int] | None = None
    """Least and most pixels of a video's frame, as the author's script keeps them; None where
    transformers keeps the same."""
    token_side: int = 0
    """Pixels of the side of what becomes one token, to which these numbers of pixels belong."""
    pixels_a_video: int = 0
    """Most pixels of all frames of a video together; 0: no limit is known."""
    context: int = 0
    """Positions that the decoder was made for, without RoPE scaling; 0: not known, or not the same
    for all checkpoints of the family."""
    fps: float | None = None
    """Frames a second that the author's script takes; None with `frames`: it spreads that number of
    frames over the video, however long."""
    frames: int | None = None
    """Most frames of a video that it takes."""
    last_frame: bool = False
    """Whether it spreads frames from the first to the last one of the video, both taken."""
    system: str | None = None
    """System turn of the author's script where it differs from the chat template's; None: as the
    template."""
    sampling: Mapping[str, float] = field(default_factory=dict)
    """Values that the card of the instruction-tuned checkpoints states: `temperature` (0: greedy),
    `top_p`, `top_k`, `presence_penalty`, `repetition_penalty`."""
    source: str = ""
    """Where all of this stands: repository, file and commit, or the page."""


_QWEN_VL_UTILS = (
    "QwenLM/Qwen3-VL qwen-vl-utils/src/qwen_vl_utils/vision_process.py at 9658872 "
    "(the same as qwen-vl-utils 0.0.14)"
)
# `total_pixels` (0.9 x 128,000 tokens) counts the frames of a pair once: twice that for all frames.
_QWEN2_VIDEO = 2 * int(128_000 * 28 * 28 * 0.9)

_QWEN2_5_OMNI = FamilyFacts(
    pixels_a_frame=(128 * 28 * 28, 768 * 28 * 28),
    token_side=28,
    pixels_a_video=_QWEN2_VIDEO,
    fps=2.0,
    frames=768,
    last_frame=True,
    source="QwenLM/Qwen2.5-Omni qwen-omni-utils/src/qwen_omni_utils/v2_5/vision_process.py at "
    "f8bf58c",
)
_QWEN3_VL = FamilyFacts(
    context=262_144,
    fps=2.0,
    frames=768,
    last_frame=True,
    sampling={
        "temperature": 0.7,
        "top_p": 0.8,
        "top_k": 20,
        "presence_penalty": 1.5,
        "repetition_penalty": 1.0,
    },
    source=f"{_QWEN_VL_UTILS}; context and sampling of Instruct: README.md there, "
    "'Generation Hyperparameters'",
)
_QWEN3_5 = FamilyFacts(
    context=262_144,
    sampling={"top_k": 20, "presence_penalty": 1.5, "repetition_penalty": 1.0},
    source="context: QwenLM/Qwen3.5 README.md at 7e103ae; sampling, as far as thinking and not "
    "thinking agree: card of Qwen/Qwen3.5-27B and -35B-A3B, as README.md of "
    "armand0e/Qwen3-27B-MiniMax-Coder and fakoli.github.io/anvil-serving quote them",
)

FACTS: Mapping[str, FamilyFacts] = {
    "qwen2_vl": FamilyFacts(
        pixels_a_frame=(128 * 28 * 28, 768 * 28 * 28),
        token_side=28,
        pixels_a_video=_QWEN2_VIDEO,
        context=32_768,
        fps=2.0,
        frames=768,
        last_frame=True,
        source=f"{_QWEN_VL_UTILS}; context: config.json of Qwen/Qwen2-VL-7B-Instruct-GPTQ-Int8",
    ),
    "qwen2_5_vl": FamilyFacts(
        pixels_a_frame=(128 * 28 * 28, 768 * 28 * 28),
        token_side=28,
        pixels_a_video=_QWEN2_VIDEO,
        context=128_000,
        fps=2.0,
        frames=768,
        last_frame=True,
        source=f"{_QWEN_VL_UTILS}; context: config.json of Qwen/Qwen2.5-VL-7B-Instruct-AWQ",
    ),
    "qwen2_5_omni": _QWEN2_5_OMNI,
    "qwen2_5_omni_thinker": _QWEN2_5_OMNI,
    "qwen3_vl": _QWEN3_VL,
    "qwen3_vl_moe": _QWEN3_VL,
    "qwen3_5": _QWEN3_5,
    "qwen3_5_moe": _QWEN3_5,
    "llava": FamilyFacts(
        context=4_096,
        sampling={"temperature": 0.0},
        source="LLaVA-1.5: haotian-liu/LLaVA README.md at c121f04; context: config.json of "
        "lmsys/vicuna-13b-v1.5 at 56d5ac2, from which it was tuned",
    ),
    "llava_next": FamilyFacts(
        sampling={"temperature": 0.0},
        source="LLaVA-VL/LLaVA-NeXT docs/LLaVA-NeXT.md at df17966",
    ),
    "llava_next_video": FamilyFacts(
        context=4_096,
        fps=1.0,
        frames=32,
        sampling={"temperature": 0.0},
        source="LLaVA-VL/LLaVA-NeXT playground/demo/video_demo.py and docs/LLaVA-NeXT-Video.md at "
        "df17966",
    ),
    "llava_onevision": FamilyFacts(
        context=32_768,
        frames=16,
        last_frame=True,
        system=HELPFUL,
        sampling={"temperature": 0.0},
        source="LLaVA-VL/LLaVA-NeXT docs/LLaVA_OneVision_Tutorials.ipynb and "
        "llava/conversation.py (qwen_1_5) at df17966; context: 7b/config.json of "
        "lmms-lab/llava-onevision-projectors",
    ),
    "video_llava": FamilyFacts(
        context=4_096,
        frames=8,
        last_frame=True,
        system=LLAVA_V1_SYSTEM,
        sampling={"temperature": 0.1},
        source="PKU-YuanGroup/Video-LLaVA README.md, videollava/conversation.py and videollava/"
        "model/multimodal_encoder/languagebind/video/processing_video.py at 984e65b; context: "
        "config.json of LanguageBind/Video-LLaVA-7B at aecae02",
    ),
    "internvl": FamilyFacts(
        frames=8,
        system=INTERNVL_SYSTEM,
        source="OpenGVLab/InternVL README.md ('video multi-round conversation') and internvl_chat/"
        "internvl/conversation.py, shell/internvl3.0 (--conv_style) at 2410d1d",
    ),
    "smolvlm": FamilyFacts(
        context=8_192,
        fps=1.0,
        frames=64,
        source="huggingface/smollm vision/smolvlm2/scripts/train/multinode25.sh at a041759",
    ),
    "glm4v": FamilyFacts(
        context=65_536,
        source="zai-org/GLM-V (THUDM/GLM-4.1V-Thinking) README.md at 8fc9756",
    ),
    "ernie4_5_vl_moe": FamilyFacts(
        context=131_072,
        fps=2.0,
        frames=180,
        source="PaddlePaddle/FastDeploy fastdeploy/input/ernie4_5_vl_processor/process.py at "
        "0337379 and docs/best_practices/ERNIE-4.5-VL-28B-A3B-Thinking.md",
    ),
    "video_llama_3": FamilyFacts(
        fps=1.0,
        frames=180,
        system=HELPFUL,
        source="DAMO-NLP-SG/VideoLLaMA3 README.md and inference/example_videollama3.py at 05cee23",
    ),
    "molmo2": FamilyFacts(
        fps=2.0,
        frames=128,
        last_frame=True,
        source="allenai/molmo2 launch_scripts/sft.py (uniform_last_frame) at f3cb108",
    ),
    "minicpmv4_6": FamilyFacts(
        fps=1.0,
        frames=128,
        source="OpenBMB/MiniCPM-V README.md ('Video Inference', stack_frames=1) at 0dbb566",
    ),
}
"""`model_type` of config.json → facts."""


def facts_of(model_type: str) -> FamilyFacts:
    """Return what is known of a family by its `model_type`; empty facts where nothing is."""
    return FACTS.get(model_type, FamilyFacts())
