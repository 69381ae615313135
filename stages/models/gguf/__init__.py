"""Language halves as GGUF files, run by llama.cpp. Imports no library."""

from dataclasses import dataclass

from artifacts.packages import install_command

ROWS = 8
"""Rows of every decode step. Idle rows are computed too: llama.cpp rounds products of one row
otherwise than those of several, so a caption's bytes would depend on what runs beside it."""
PIECE_TOKENS = 256
"""Tokens of a prompt that are read at once, counted from its first."""
COLUMN_MULTIPLE = 256
"""Tokens by which a sequence's part of the KV cache grows."""
PACKAGES = ("gguf", "llama-cpp-python")
EXACT = "gguf-f32"
"""Kind of the files that llama.cpp computes as transformers does, up to rounding."""
FAMILIES = frozenset(
    {
        *("llava", "llava_next", "llava_next_video", "llava_onevision", "video_llava", "vipllava"),
        *("internvl", "qianfan_ocr", "ovis2", "fast_vlm", "perception_lm", "video_llama_3"),
        *("smolvlm", "idefics2", "idefics3", "mistral3", "lighton_ocr", "got_ocr2"),
        *("deepseek_vl", "deepseek_vl_hybrid", "janus", "pp_chart2table", "emu3"),
        *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "cosmos3_omni", "qwen2_5_omni_thinker"),
        *("gemma3", "paligemma", "glm4v", "glm46v", "glm_ocr", "paddleocr_vl"),
        *("lfm2_vl", "aya_vision", "cohere2_vision"),
    }
)
"""`model_type` of the models whose language halves the tests have compared with transformers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GgufShape:
    """The dimensions of a decoder that decide how much memory llama.cpp takes."""

    width: int
    """Numbers of an input row, those of image features for deeper layers included."""
    inner: int
    """Numbers between the matrices of an MLP."""
    heads: int
    """Attention heads."""
    whole: bool
    """Whether all tokens of a prompt see each other, so that it is read in one piece."""
    exact: bool
    """Whether the KV cache is in 32 bit and flash attention off, as for a file of EXACT."""


def how_to_install() -> str:
    """Return the command that installs the packages, and what it takes."""
    return f"{install_command('gguf')} (llama.cpp is compiled, which takes 5 to 20 minutes)"
