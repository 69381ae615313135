"""The mapping of language halves to GGUF, and what is said without llama.cpp."""

import sys
from importlib.metadata import PackageNotFoundError
from typing import Any

import pytest
import torch

from artifacts.errors import EnvironmentFault, UsageError
from stages.decode.engines import ENGINES, accepted_by, engines_for, gguf_engine
from stages.decode.engines.gguf_costs import RESERVE_BYTES, slot_terms
from stages.decode.engines.slot_load import SlotLoad
from stages.models import gguf
from stages.models.gguf import ROWS, check_packages, library
from stages.models.gguf.mapping import interleaved, mapping_of
from stages.models.halves.classes import load_config
from stages.models.kv_profile import LayerMemory, RowMemory
from tests.support.tiny_families import FAMILIES


def config_of(variant: str) -> Any:
    return FAMILIES[variant]()[0].config


@pytest.mark.parametrize(
    ("variant", "said"),
    [
        ("gemma3", "gemma3 with a gemma3_text decoder is not mapped"),
        ("qwen3_vl_moe", "qwen3_vl_moe with a qwen3_vl_moe_text decoder is not mapped"),
        ("glm4v", "glm4v with a glm4v_text decoder is not mapped"),
        ("lfm2_vl", "lfm2_vl with a lfm2 decoder is not mapped"),
        ("paligemma", "paligemma with a gemma decoder is not mapped"),
        ("aya_vision", "aya_vision with a cohere2 decoder is not mapped"),
    ],
)
def test_a_family_that_no_test_has_compared_is_refused_by_name(variant: str, said: str) -> None:
    with pytest.raises(UsageError) as raised:
        mapping_of(config_of(variant), "MODEL")
    assert raised.value.message == f"MODEL cannot be written as GGUF: {said}"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}},
            "its rotary positions are scaled (yarn)",
        ),
        ({"hidden_act": "gelu"}, "its MLP uses gelu"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding window"),
        (
            {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "only a part of its heads is rotated",
        ),
    ],
)
def test_a_decoder_that_computes_otherwise_is_refused(changes: dict[str, Any], said: str) -> None:
    config = config_of("llava_onevision")
    for name, value in changes.items():
        setattr(config.text_config, name, value)
    with pytest.raises(UsageError, match="cannot be written as GGUF") as raised:
        mapping_of(config, "MODEL")
    assert said in raised.value.message


def test_rows_of_a_head_are_interleaved_as_llama_cpp_rotates_them() -> None:
    weight = torch.arange(8.0).unsqueeze(1)  # two heads of four dimensions
    assert interleaved(weight, 2).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_the_demo_has_an_empty_section_for_the_order_of_tokens() -> None:
    from penstock_demo import CHECKPOINT

    found = mapping_of(load_config(CHECKPOINT, False), "demo")
    assert (found.architecture, found.deepstack) == ("paddleocr", 0)


def test_the_engine_is_never_chosen_for_another_checkpoint() -> None:
    assert engines_for("gguf") == (ENGINES["gguf"],)
    assert gguf_engine("auto") == gguf_engine("gguf") == "gguf"
    for choice in ("inflight", "transformers"):
        assert gguf_engine(choice) == ""
    for choice in ("auto", "inflight", "transformers"):
        assert ENGINES["gguf"] not in accepted_by(choice)


def test_missing_packages_are_named_with_the_command_that_installs_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(gguf, "version", missing)
    with pytest.raises(EnvironmentFault, match="gguf is not installed") as raised:
        check_packages()
    assert "pip install 'penstock[gguf]'" in str(raised.value.hint)


def test_a_binding_that_cannot_be_loaded_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library.BINDING, None)
    library.library.cache_clear()
    with pytest.raises(EnvironmentFault, match="engine gguf: llama-cpp-python is not installed"):
        library.library()


def test_a_plan_counts_every_sequence_used_or_not() -> None:
    memory = RowMemory(kept=(LayerMemory(kind="DynamicLayer", layers=2, token_bytes=64),), words=10)

    def load(slots: int) -> SlotLoad:
        return SlotLoad(
            engine=ENGINES["gguf"],
            memory=memory,
            number_bytes=4,
            slots=slots,
            tokens=200,
            new_tokens=100,
            prompt_bytes=1000,
            device="cpu",
        )

    terms = list(slot_terms(load(8)))
    assert terms == list(slot_terms(load(1)))
    token = 2 * 64 * 2  # two layers, in 32 instead of 16 bit
    assert [term.bytes for term in terms] == [
        (ROWS + 1) * 512 * token,
        2 * 200 * token,
        1000 + 2 * ROWS * 10 * 4 + RESERVE_BYTES,
    ]
