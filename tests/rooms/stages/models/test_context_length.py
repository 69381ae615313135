"""The context of a model is that of its configuration, with its RoPE scaling in it once."""

from typing import Any

import pytest
import transformers

from stages.models.context_length import context_tokens

hf: Any = transformers
ORIGINAL = "original_max_position_embeddings"
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
FACTORS = {"short_factor": [1.0] * 48, "long_factor": [1.0] * 48}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("stated", "scaling", "context"),
    [
        (4096, None, 4096),
        (4096, {"type": "linear", "factor": 4.0}, 16384),
        (2048, {"rope_type": "dynamic", "factor": 2.5}, 5120),
        (32768, {"type": "yarn", "factor": 4.0, ORIGINAL: 32768}, 131072),
        (32768, {"type": "yarn", "factor": 4.0}, 131072),
        (131072, {"rope_type": "yarn", "factor": 32.0, ORIGINAL: 4096}, 131072),
        (131072, {"rope_type": "llama3", "factor": 32.0, ORIGINAL: 8192, **LLAMA3}, 131072),
    ],
)
def test_rope_scaling_enlarges_the_context_once(
    stated: int, scaling: dict[str, Any] | None, context: int
) -> None:
    config = hf.LlamaConfig(max_position_embeddings=stated, rope_scaling=scaling)
    assert context_tokens(config) == context


@pytest.mark.filterwarnings("ignore")
def test_longrope_states_the_context_that_it_reaches() -> None:
    sizes = {"max_position_embeddings": 131072, ORIGINAL: 4096}
    config = hf.Phi3Config(rope_scaling={"type": "longrope", **FACTORS}, **sizes)
    assert context_tokens(config) == 131072


def test_of_layers_of_several_kinds_the_least_counts() -> None:
    scaling = {"rope_type": "linear", "factor": 8.0}
    text = {"max_position_embeddings": 131072, "rope_scaling": scaling}
    config = hf.Gemma3Config(text_config=text)
    kinds = {name: each["rope_type"] for name, each in config.text_config.rope_parameters.items()}
    assert kinds == {"sliding_attention": "default", "full_attention": "linear"}
    assert context_tokens(config) == 131072


def test_sections_of_positions_enlarge_nothing() -> None:
    scaling = {"type": "mrope", "mrope_section": [16, 24, 24]}
    text = {"max_position_embeddings": 128000, "rope_scaling": scaling}
    assert context_tokens(hf.Qwen2_5_VLConfig(text_config=text)) == 128000


def test_what_makes_no_sense_as_a_scaling_is_passed_over() -> None:
    config = hf.LlamaConfig(max_position_embeddings=64)
    for most, scaling in (
        (64, {"rope_type": "linear", "factor": "4"}),
        (64, {"rope_type": "linear", "factor": float("inf")}),
        (128, {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": "64"}),
    ):
        config.rope_parameters = scaling
        assert context_tokens(config) == most
