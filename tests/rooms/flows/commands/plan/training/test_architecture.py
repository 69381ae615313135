"""The dimensions that are read off a checkpoint's files, and the formulas over them, checked by
hand arithmetic; the table of docs/memory.md. Where a sum stands, it is meant to be read."""

import json
from functools import cache
from pathlib import Path

import pytest

from artifacts.errors import UsageError
from flows.commands.plan.training.architecture import (
    Architecture,
    Transformer,
    pass_bytes,
    read_architecture,
    stacks_of,
)
from flows.interfaces.cli.main import main
from scripts.pages.tables import MEMORY_PAGE, TUNING_MARK, tuning_table
from stages.decode.engines.inflight.pool_shape import columns_for
from stages.models.hub.checkpoint import Checkpoint
from stages.models.hub.headers import Header
from tests.support.builders.common import put
from tests.support.builders.plan_cases import (
    Shape,
    kept_folder,
    make_folder,
    plan_case,
    write_header,
)

GIB = 1 << 30


@cache
def checkpoint(name: str) -> Checkpoint:
    return Checkpoint(name=name, folder=kept_folder(plan_case(name)))


def architecture(name: str) -> Architecture:
    return read_architecture(checkpoint(name))


def test_a_stack_is_described_by_its_most_common_layer() -> None:
    dense, sparse = {"mlp.weight": (8, 8)}, {"mlp.experts.weight": (64, 8)}
    norms = {f"norm{at}.weight": (8,) for at in range(3)}
    layers = [dense, sparse, sparse, sparse]
    (stack,) = stacks_of(
        Header(f"model.layers.{at}.{name}", "", "BF16", shape, 0)
        for at, layer in enumerate(layers)
        for name, shape in {**layer, **norms}.items()
    )
    assert stack.parameters == 64 * 8 + 3 * 8


def tower(found: Transformer | None) -> Transformer:
    assert found is not None
    return found


def test_the_page_has_the_table_that_the_command_prints() -> None:
    page, text = MEMORY_PAGE.read_text(), tuning_table()
    assert put(page, TUNING_MARK, text) == page, "run: python -m scripts.pages.tables memory"
    assert len(text.splitlines()) > 10


def test_a_tower_of_eva_clip_takes_470_mb_a_layer_in_16_bit() -> None:
    vision = tower(architecture("eva-clip-8b").vision)
    assert vision.linear_parameters == 4 * 4096 * 4096 + 2 * 4096 * 20480  # q, k, v, output; MLP
    assert (vision.layers, vision.width, vision.heads, vision.patch) == (32, 4096, 32, 14)
    assert (vision.positions, vision.image_size) == (257, 224)  # 16 x 16 patches and a class token
    assert (vision.mlp_width, vision.is_gated) == (20480, False)


def test_a_language_half_with_grouped_heads_and_a_gated_mlp_is_read_off_its_shapes() -> None:
    found = architecture("qwen2.5-vl-7b-instruct")
    text, vision = tower(found.text), tower(found.vision)
    assert (text.layers, text.width, text.heads) == (28, 3584, 28)
    assert (text.query_width, text.key_width) == (3584, 4 * 128)
    assert (text.mlp_width, text.is_gated) == (18944, True)
    assert (found.vocabulary, found.writes) == (152064, True)
    assert (vision.merge, vision.handed_over(448)) == (2, 16 * 16)
    assert found.parameters == 8_292_166_656
    # As transformers' class counts its half.
    assert found.parameters - found.text_parameters == 676_550_144


def test_query_key_and_value_in_one_matrix_are_told_apart() -> None:
    """CogVLM2-Llama3-Caption: 4096 and twice 1024 rows, as Llama 3; a convolution of two by two and
    two tokens around the picture."""
    found = architecture("cogvlm2-llama3-caption")
    text, vision = tower(found.text), tower(found.vision)
    assert (text.query_width, text.key_width) == (4096, 1024)
    assert (vision.width, vision.layers, vision.mlp_width) == (1792, 63, 15360)
    assert vision.handed_over(224) == 8 * 8 + 2
    assert found.parameters - found.text_parameters == 4_477_269_248
    assert found.text_parameters == 8_030_263_296  # Llama 3 8B has 8,030,261,248; 32 x 64 of rotary


def test_a_model_that_makes_vectors_writes_nothing() -> None:
    for name in ("clip-vit-large-patch14", "eva-clip-8b"):
        assert not architecture(name).writes


def test_attention_that_is_not_fused_keeps_scores() -> None:
    vision = tower(architecture("llava-1.5-7b-hf").vision)
    fused = pass_bytes(vision, 8, 577, 2)
    scores = 8 * 16 * 577 * 577 * (2 + 4)
    rows = 8 * 577 * 2  # bytes of a number of every token
    # Nothing is told of the nonlinearity: three steps of the MLP's 4096 are assumed.
    assert fused == rows * (4 * 1024 + 3 * 4096)
    assert pass_bytes(vision, 8, 577, 2, fused=False) == rows * (4 + 4) * 1024 + scores


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "frames_a_patch"), [("llava-1.5-7b-hf", 1), ("qwen2.5-vl-7b-instruct", 2)]
)
def test_formulas_tell_what_runs_without_data_tell(name: str, frames_a_patch: int) -> None:
    """Peaks within 6 %, caches of the language half exactly."""
    from stages.models.inspection import describe

    profile = describe(checkpoint(name).folder)
    found = architecture(name)
    vision, text = tower(found.vision), tower(found.text)
    for work in profile.vision.batch_costs:
        a_token = 3 * vision.patch**2 * frames_a_patch
        tokens = vision.positions or work.units // a_token
        message = pass_bytes(vision, work.rows, tokens, 2) + work.rows * work.units * (4 + 2)
        assert message == pytest.approx(work.peak_bytes, rel=0.06)
    for work in profile.language.batch_costs:
        cache = 2 * text.layers * text.key_width * 2 * work.rows * work.units
        assert work.kept_bytes == cache
        message = cache + pass_bytes(text, work.rows, work.units, 2)
        assert message == pytest.approx(work.peak_bytes, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["instructblip", "gemma3", "internvl", "qwen3_vl"])
def test_halves_are_told_apart_as_the_classes_do(family: str) -> None:
    """Of families that nothing here names, with two more stacks of layers in some."""
    from stages.models.inspection import describe
    from tests.support.checkpoints import MODELS, whole_checkpoint
    from tests.support.families import checkpoint as small

    folder = whole_checkpoint(family) if family in MODELS else small(family)
    profile = describe(folder)
    found = read_architecture(Checkpoint(name=family, folder=folder))
    assert found.parameters - found.text_parameters == profile.vision.parameters
    assert found.text_parameters == profile.language.parameters
    assert tower(found.vision).width == 32


def test_packed_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    shape = Shape(dtype="F16", shape=(8, 8))
    tensors = {f"layers.{n}.{m}.weight": shape for n in range(3) for m in ("q", "k", "v", "o")}
    write_header(tmp_path / "model.safetensors", tensors)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"F16"', b'"U16"'))
    with pytest.raises(UsageError, match=r"is quantized \(U16\), but config.json has no"):
        read_architecture(Checkpoint(name="packed", folder=tmp_path))


@pytest.mark.slow
def test_llava_7b_is_as_is_published(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_folder(plan_case("llava-1.5-7b-hf"), tmp_path / "model")
    options = ["--frames", "1", "--precision", "bf16", "--memory", "64GiB", "--json"]
    assert main(["plan", "--model", str(folder), *options]) == 0
    found = json.loads(capsys.readouterr().out)
    stages = {stage["stage"]: stage for stage in found["memory"]["stages"]}
    encode, decode = stages["encode"], stages["decode"]
    assert encode["weight_bytes"] == 2 * 324_487_168
    assert decode["weight_bytes"] == 2 * 6_738_939_904
    # Keys and values of 32 layers of 4,096 numbers.
    tokens = decode["load"]["tokens"] + 256
    assert decode["kv_bytes"] == 8 * columns_for(tokens) * 2 * 32 * 4096 * 2
    # 24 layers hold 576 + 1 tokens of 1,024: at the least the MLP's 4,096 and the stream.
    assert encode["activation_bytes"] > 8 * 577 * (4096 + 1024) * 2
    assert decode["peak_bytes"] < 17 * GIB
    table = found["what_fits_gpu"]
    fits = {row: {size for size, held in cells.items() if held} for row, cells in table.items()}
    # A GPU gets up to 64 slots: here as many as fit beside 12.6 GiB of weights.
    assert table["native"]["24GiB"] == {"encode": 8, "decode": 16}
    assert fits["native"] == {"16GiB", "24GiB"}  # 12.6 GiB of weights, and a context
    assert fits["int8"] == {"8GiB", "12GiB", "16GiB", "24GiB"}  # 6.5
    assert fits["nf4"] == {"6GiB", "8GiB", "12GiB", "16GiB", "24GiB"}  # 3.6
    assert "4GiB" in fits["auto"]  # layer by layer
    assert '.safetensors"' not in (tmp_path / "store" / "digests.jsonl").read_text()
