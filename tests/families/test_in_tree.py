"""Models computed by code of our own say what the published code says: whole, in halves, streamed,
and in few bits."""

import json
import math
import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.schema import Part
from stages.models import describe, encode, generate, load_half
from stages.models.halves.boundary import absent_paths
from stages.models.halves.model_class import config_and_class, skeleton_of
from stages.models.in_tree.registry import NATIVES, native_of
from stages.models.loading import ModelJob
from stages.models.precision.quantize import count, quantizable
from stages.models.streaming.load import run_calls, streamed_layers
from tests.support import evaclip
from tests.support.builders.plan_cases import plan_case, write_header
from tests.support.clips import profile_of, without_pixels
from tests.support.cogvlm2 import DRAWN, GREEDY, Reference, make_folder, published, references
from tests.support.families import change_config, change_weights
from tests.support.tiny_families.in_slots import LIMITS, greedy, in_slots, tried_in_slots

Experts = Literal[True, False]


@cache
def reference(name: str) -> Reference:
    return references()[name]


@cache
def held(experts: Experts, keep: Part) -> Any:
    return load_half(published(experts), keep, dtype=torch.float32)


@pytest.mark.parametrize("name", DRAWN)
def test_the_whole_says_what_the_published_code_says(name: str) -> None:
    case = reference(name)
    whole = held(case.experts, "whole")
    with torch.inference_mode():
        logits = whole(**case.inputs).logits
        text = whole.generate(**case.inputs, **GREEDY)
    assert torch.equal(text, case.tokens)
    if case.logits.ndim == 2:
        assert (logits[:, -1] - case.logits).abs().max() < 2e-4
    else:
        there = case.text["attention_mask"].bool()
        assert (logits - case.logits)[there].abs().max() < 2e-4


@pytest.mark.parametrize("name", DRAWN)
def test_halves_say_it_too(name: str) -> None:
    case = reference(name)
    features = encode(held(case.experts, "vision"), case.inputs)
    language = held(case.experts, "language")
    for _ in range(2):  # the first call must not have changed the features
        text = generate(language, without_pixels(case.inputs), features, **GREEDY)
        assert torch.equal(text, case.tokens)


@pytest.mark.parametrize("name", ["video/b2", pytest.param("experts/b1", marks=pytest.mark.slow)])
def test_a_vision_half_whose_layers_come_from_the_files_sees_the_same(name: str) -> None:
    case = reference(name)
    job = ModelJob(model=str(published(case.experts)), dtype="float32", offload=True)
    half = job.load_reloadable("vision").model
    assert streamed_layers(half) is not None
    (streamed,) = run_calls(half, [lambda: encode(half, case.inputs)])
    resident = encode(held(case.experts, "vision"), case.inputs)
    assert streamed.keys() == resident.keys()
    for kind, record in resident.items():
        pairs = zip(streamed[kind].pooler_output, record.pooler_output, strict=True)
        assert all(torch.equal(found, expected) for found, expected in pairs)


def row_of(case: Reference, row: int) -> dict[str, torch.Tensor]:
    """The inputs of one row of a batch, without padding."""
    first = int(case.text["attention_mask"][row].argmax())
    text = {name: value[row : row + 1, first:] for name, value in case.text.items()}
    if case.experts:
        return {**text, "pixel_values": case.pictures["pixel_values"][row : row + 1]}
    counts = case.pictures["video_frame_counts"].tolist()
    frames = case.pictures["pixel_values_videos"].split(counts)[row]
    video = {"video_frame_counts": torch.tensor([len(frames)]), "pixel_values_videos": frames}
    return {**text, **video}


@pytest.mark.parametrize("experts", [False, True])
def test_rows_in_slots_that_are_refilled_say_it_too(experts: Experts) -> None:
    items, expected = [], []
    for case in map(reference, DRAWN):
        for row in range(len(case.tokens) if case.experts == experts else 0):
            inputs = row_of(case, row)
            features = encode(held(experts, "vision"), inputs)
            items.append((without_pixels(inputs), features))
            expected.append(case.tokens[row, -GREEDY["max_new_tokens"] :].tolist())
    items, expected = [*items, items[0]][:5], [*expected, expected[0]][:5]
    language = greedy(load_half(published(experts), "language", dtype=torch.float32))
    tried = tried_in_slots(language, items)
    assert not tried.reason
    text = in_slots(language, items)
    assert text == [w[:limit] for w, limit in zip(expected, LIMITS, strict=False)]


@pytest.mark.parametrize("experts", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_halves_share_nothing_and_leave_nothing_out(experts: Experts) -> None:
    whole = held(experts, "whole")
    assert absent_paths(whole, "vision") == ["lm_head", "model.language_model"]
    assert absent_paths(whole, "language") == ["model.vision"]
    halves = [held(experts, half).num_parameters() for half in ("vision", "language")]
    assert sum(halves) == whole.num_parameters()
    profile = profile_of(published(experts))
    assert [part.parameters for part in profile.parts.values()] == halves
    assert profile.route == "protocol" and not profile.batch_costs_unknown


@pytest.mark.parametrize(
    ("case", "linears"),
    [
        ("cogvlm2-llama3-caption", {"vision": 256, "language": 224}),
        ("cogvlm2-llama3-chat-19b", {"vision": 256, "language": 320}),
    ],
)
def test_full_size_has_the_published_parameters_and_layers_that_nf4_takes(
    case: str, linears: dict[Part, int], tmp_path: Path
) -> None:
    files = plan_case(case)
    (tmp_path / "config.json").write_text(json.dumps(files.config))
    skeleton = skeleton_of(*config_and_class(tmp_path, trusted=False))
    # The frequencies of the positions are in the files, and are computed here.
    frequencies = [n for n in files.tensors if n.endswith("rotary_emb.inv_freq")]
    computed = sum(math.prod(files.tensors[name]) for name in frequencies)
    assert skeleton.num_parameters() == files.parameters - computed
    assert (len(frequencies), computed) == (32, 2_048)
    assert {half: len(quantizable(skeleton, half)) for half in linears} == linears
    text = (skeleton.model.language_model, skeleton.lm_head)
    every = [m for part in text for m in part.modules() if type(m) is torch.nn.Linear]
    assert len(every) == linears["language"] + 1  # the output head stays as it is


@pytest.mark.parametrize("experts", [False, True])
def test_the_tiny_folders_hold_the_published_names(experts: Experts) -> None:
    """zai-org/cogvlm2-llama3-chat-19B's index lists them; the caption model's lack its experts."""
    case = "cogvlm2-llama3-chat-19b" if experts else "cogvlm2-llama3-caption"
    tiny, published_names = (
        {re.sub(r"\.layers\.\d+\.", ".layers.{}.", name) for name in names}
        for names in (load_file(published(experts) / "model.safetensors"), plan_case(case).tensors)
    )
    assert tiny == published_names


PUBLISHED = {
    "BAAI/EVA-CLIP-8B": "eva-clip-8b",
    "BAAI/EVA-CLIP-8B-448": "eva-clip-8b-448",
    "BAAI/EVA-CLIP-18B": "eva-clip-18b",
    "zai-org/cogvlm2-llama3-caption": "cogvlm2-llama3-caption",
    "zai-org/cogvlm2-llama3-chat-19B": "cogvlm2-llama3-chat-19b",
}
"""Hub id → the list of its tensors."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_page_states_the_published_counts(name: str, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "natives.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith(f"| [{name}]"))
    files = plan_case(PUBLISHED[name])
    total = files.parameters * {"F32": 4, "BF16": 2}[files.dtype]
    (tmp_path / "config.json").write_text(json.dumps(files.config))
    write_header(tmp_path / "model.safetensors", files.shapes)
    ours = skeleton_of(*config_and_class(tmp_path, trusted=False)).num_parameters()
    cells = [cell.strip() for cell in row.split("|")]
    assert cells[2:5] == [f"{n:,}" for n in (len(files.tensors), files.parameters, total)]
    assert cells[6] == f"{ours:,}"


@pytest.mark.parametrize("experts", [False, True])
def test_both_halves_are_had_in_4_bit_and_generate(experts: Experts) -> None:
    case = reference("experts/b1" if experts else "video/b1")
    job = ModelJob(model=str(published(experts)), dtype="float32", precision="nf4")
    halves = {half: job.load(half) for half in ("vision", "language")}
    assert count(halves["vision"])["nf4"] == 16
    assert count(halves["language"])["nf4"] == (30 if experts else 21)
    features = encode(halves["vision"], case.inputs)
    text = generate(halves["language"], without_pixels(case.inputs), features, **GREEDY)
    assert text.shape == case.tokens.shape


def test_rotary_frequencies_are_exact_or_as_the_files_keep_them(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    make_folder(folder)

    def rounded_ones(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {n: t.bfloat16() if n.endswith("inv_freq") else t for n, t in weights.items()}

    change_weights(folder, rounded_ones)
    kept = load_file(folder / "model.safetensors")["model.layers.0.self_attn.rotary_emb.inv_freq"]
    found = {}
    for rounded in (False, True):
        half: Any = load_half(folder, "language", dtype=torch.float32, as_published=rounded)
        found[rounded] = half.model.language_model.rotary_emb.inv_freq
    exact = 1.0 / (500000 ** (torch.arange(0, 16, 2).float() / 16))
    assert torch.equal(found[False], exact)
    assert torch.equal(found[True], kept.float()) and not torch.equal(found[True], exact)


def test_rounded_frequencies_make_other_logits(tmp_path: Path) -> None:
    case = reference("video/24")
    rounded = load_half(published(), "whole", dtype=torch.float32, as_published=True)
    with torch.inference_mode():
        far = rounded(**case.inputs).logits - held(False, "whole")(**case.inputs).logits
    assert far[case.text["attention_mask"].bool()].abs().max() > 1e-2


@pytest.mark.slow
def test_code_that_comes_with_the_checkpoint_never_runs() -> None:
    folder = published()
    assert (folder / "modeling_cogvlm.py").exists()  # which would raise SystemExit
    assert load_half(folder, "vision", trust_remote_code=True)
    assert describe(folder, trust_remote_code=True).route == "protocol"


def test_a_saved_model_is_loaded_again(tmp_path: Path) -> None:
    case = reference("video/b2")
    held(False, "whole").save_pretrained(tmp_path)
    assert native_of(tmp_path) is NATIVES["CogVLMVideoForCausalLM"]
    assert load_file(tmp_path / "model.safetensors").keys() >= {
        "model.layers.0.self_attn.language_expert_query_key_value.weight",
        "model.layers.2.mlp.language_mlp.up_proj.weight",
    }
    again = load_half(tmp_path, "whole")
    assert torch.equal(again.generate(**case.inputs, **GREEDY), case.tokens)


def test_beams_of_halves_are_those_of_the_whole() -> None:
    case = reference("video/b2")
    options = {**GREEDY, "num_beams": 3}
    features = encode(held(False, "vision"), case.inputs)
    staged = generate(held(False, "language"), without_pixels(case.inputs), features, **options)
    assert torch.equal(staged, held(False, "whole").generate(**case.inputs, **options))


def test_features_that_do_not_match_their_places_fail() -> None:
    case = reference("video/b1")
    fewer = {**case.inputs, "pixel_values_videos": case.pictures["pixel_values_videos"][:4]}
    fewer["video_frame_counts"] = torch.tensor([4])
    with pytest.raises(ValueError, match="30 placeholders for 24 features"):
        held(False, "whole")(**fewer)


def test_visual_experts_refuse_a_prompt_in_pieces() -> None:
    case = reference("experts/b1")
    with pytest.raises(ValueError, match="do not support chunked prefill"):
        held(True, "whole").generate(**case.inputs, **GREEDY, prefill_chunk_size=4)
    video = reference("video/24")
    text = held(False, "whole").generate(**video.inputs, **GREEDY, prefill_chunk_size=50)
    assert torch.equal(text, video.tokens)


@pytest.mark.parametrize(
    ("source", "changes"),
    [
        (published, {"hidden_size": "wide"}),
        (published, {"vision_config": 7}),
        (published, {"num_attention_heads": 7}),
        (evaclip.published, {"vision_config": 7}),
        (evaclip.published, {"vision_config": {"num_attention_heads": 7}}),
    ],
)
def test_a_configuration_without_sense_fails_in_one_line(
    source: Callable[[], Path], changes: dict[str, Any], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(source(), tmp_path / "model"))
    with pytest.raises((UsageError, EnvironmentFault)) as caught:
        describe(change_config(folder, **changes))
    assert "config.json" in caught.value.message and "\n" not in str(caught.value)


@pytest.mark.parametrize("named", [None, "CogVLMVideoForCausalLM", [], [7], ["OtherForCausalLM"]])
def test_only_a_named_class_is_computed_by_our_code(named: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": named}))
    assert native_of(tmp_path) is None
    (tmp_path / "config.json").write_text("[" * 100_000)
    assert native_of(tmp_path) is None
