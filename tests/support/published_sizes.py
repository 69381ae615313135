"""The numbers of published configurations that decide how many frames fit a model's context.

Each entry names the repository on the Hugging Face hub whose `config.json` and processor files
state its numbers.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedSizes:
    """One published configuration."""

    stated_context: int
    """`max_position_embeddings` of the language model, in tokens."""
    rope_type: str = "default"
    """RoPE scaling type. `linear` and `dynamic` multiply the stated context."""
    rope_factor: float = 1.0
    vocabulary: int
    """Number of tokens in the embedding."""
    layers: int
    """Number of layers of the language model."""
    edge: int = 0
    """Side of the square, in pixels, that the vision tower takes; 0: any size."""
    patch: int
    """Side of a patch in pixels."""
    merge: int = 1
    """Patches along one side that become one token."""
    frame_tokens: int = 0
    """Tokens of a video frame or of an image that is not cut into tiles, placeholders alone; 0: the
    frame size decides."""

    @property
    def context(self) -> int:
        """Return the tokens of prompt and answer together, RoPE scaling included."""
        return int(self.stated_context * self.rope_factor)


PUBLISHED: dict[str, PublishedSizes] = {
    # Salesforce/blip-image-captioning-base
    "blip": PublishedSizes(
        stated_context=512, vocabulary=30524, layers=12, edge=384, patch=16, frame_tokens=0
    ),
    # zai-org/cogvlm2-llama3-caption: 16 by 16 patches, 2 by 2 of them a token, and two marks
    "cogvlm2": PublishedSizes(
        stated_context=2048,
        vocabulary=128256,
        layers=32,
        edge=224,
        patch=14,
        merge=2,
        frame_tokens=66,
    ),
    # google/gemma-3-4b-it: every image is pooled to 256 tokens
    "gemma3": PublishedSizes(
        stated_context=131072, vocabulary=262208, layers=34, edge=896, patch=14, frame_tokens=256
    ),
    # zai-org/GLM-4.1V-9B-Thinking
    "glm4v": PublishedSizes(stated_context=65536, vocabulary=151552, layers=40, patch=14, merge=2),
    # HuggingFaceM4/Idefics3-8B-Llama3: 26 by 26 patches, 2 by 2 of them a token, for each tile
    "idefics3": PublishedSizes(
        stated_context=131072, vocabulary=128259, layers=32, edge=364, patch=14, merge=2
    ),
    # OpenGVLab/InternVL3-8B-hf
    "internvl": PublishedSizes(
        stated_context=32768,
        rope_type="dynamic",
        rope_factor=2.0,
        vocabulary=151674,
        layers=28,
        edge=448,
        patch=14,
        merge=2,
        frame_tokens=256,
    ),
    # llava-hf/llava-1.5-7b-hf
    "llava": PublishedSizes(
        stated_context=4096, vocabulary=32064, layers=32, edge=336, patch=14, frame_tokens=576
    ),
    # llava-hf/llava-v1.6-vicuna-7b-hf: 576 tokens for each tile
    "llava_next": PublishedSizes(
        stated_context=4096, vocabulary=32064, layers=32, edge=336, patch=14
    ),
    # llava-hf/LLaVA-NeXT-Video-7B-hf: frames are pooled 2 by 2
    "llava_next_video": PublishedSizes(
        stated_context=4096,
        rope_type="linear",
        rope_factor=2.5,
        vocabulary=32064,
        layers=32,
        edge=336,
        patch=14,
        merge=2,
        frame_tokens=144,
    ),
    # llava-hf/llava-onevision-qwen2-7b-ov-hf: 27 by 27 patches of a frame become 14 by 14 tokens
    "llava_onevision": PublishedSizes(
        stated_context=32768,
        vocabulary=152128,
        layers=28,
        edge=384,
        patch=14,
        merge=2,
        frame_tokens=196,
    ),
    # mistralai/Mistral-Small-3.1-24B-Instruct-2503
    "mistral3": PublishedSizes(
        stated_context=131072, vocabulary=131072, layers=40, edge=1540, patch=14, merge=2
    ),
    # meta-llama/Llama-3.2-11B-Vision-Instruct: images are in no prompt
    "mllama": PublishedSizes(
        stated_context=131072, vocabulary=128256, layers=40, edge=560, patch=14
    ),
    # google/paligemma2-3b-pt-448
    "paligemma": PublishedSizes(
        stated_context=8192, vocabulary=257216, layers=26, edge=448, patch=14, frame_tokens=1024
    ),
    # Qwen/Qwen2-VL-7B-Instruct
    "qwen2_vl": PublishedSizes(
        stated_context=32768, vocabulary=152064, layers=28, patch=14, merge=2
    ),
    # Qwen/Qwen2.5-VL-7B-Instruct
    "qwen2_5_vl": PublishedSizes(
        stated_context=128000, vocabulary=152064, layers=28, patch=14, merge=2
    ),
    # Qwen/Qwen3-VL-8B-Instruct
    "qwen3_vl": PublishedSizes(
        stated_context=262144, vocabulary=151936, layers=36, patch=16, merge=2
    ),
    # HuggingFaceTB/SmolVLM2-2.2B-Instruct: 27 by 27 patches, 3 by 3 of them a token
    "smolvlm": PublishedSizes(
        stated_context=8192,
        vocabulary=49280,
        layers=24,
        edge=384,
        patch=14,
        merge=3,
        frame_tokens=81,
    ),
    # LanguageBind/Video-LLaVA-7B-hf: 256 patches and the tower's own token
    "video_llava": PublishedSizes(
        stated_context=4096, vocabulary=32064, layers=32, edge=224, patch=14, frame_tokens=257
    ),
}
"""Family → sizes of one of its published models."""
