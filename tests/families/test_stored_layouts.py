"""What files of other programs state must be there, each layer is read by the scheme of its target,
and a form that is not read is refused by name before anything is encoded."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from artifacts.errors import EnvironmentFault, PenstockError, UsageError
from scripts.prove import foreign
from stages.models import describe, load_half
from stages.models.stored import layouts
from stages.models.stored.codes import codes_of
from stages.models.stored.layouts import Scheme, Settings, StoredLayer, recognized
from tests.support.builders.common import divided
from tests.support.families import checkpoint
from tests.support.quantized import (
    GPTQ,
    GROUP,
    LAYOUTS,
    Layout,
    Tensors,
    _int8,
    _pack,
    compressed,
    header,
    layer_in,
    layer_of,
    noise,
    quantized_checkpoint,
    read,
    rounded,
    twin_of,
    write_quantized,
)

Change = Callable[[Tensors, dict[str, Any]], None]


def changed(layout: str, folder: Path, change: Change) -> Path:
    """A copy of a checkpoint with changed tensors and a changed config.json."""
    shutil.copytree(quantized_checkpoint(layout), folder)
    path = folder / "model.safetensors"
    weights, config = load_file(path), json.loads((folder / "config.json").read_text())
    change(weights, config)
    save_file(weights, path, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def refusals(folder: Path) -> list[PenstockError]:
    """The errors of `plan` and of `load_half`."""
    errors = []
    for call in (lambda: describe(folder), lambda: load_half(folder, "language")):
        with pytest.raises(PenstockError) as caught:
            call()
        errors.append(caught.value)
    assert all("\n" not in str(error) and error.hint for error in errors)
    return errors


def drops(local: str, *, one: bool) -> Change:
    def change(weights: Tensors, config: dict[str, Any]) -> None:
        names = sorted(name for name in weights if name.endswith(f".{local}"))
        for name in names[-1:] if one else names:
            del weights[name]

    return change


STATED = {
    "w4a16-asymmetric": "weight_zero_point",
    "w8a8-asymmetric": "weight_zero_point",
    "w4a16-unsorted": "weight_g_idx",
    "gptq-unsorted": "g_idx",
}
"""Layout → tensor that its config.json states, without which it can be read as other numbers."""


@pytest.mark.slow
@pytest.mark.parametrize("one", [False, True], ids=["all", "one"])
@pytest.mark.parametrize("layout", STATED)
def test_a_stated_tensor_that_is_missing_is_refused_by_name(
    layout: str, one: bool, tmp_path: Path
) -> None:
    local = STATED[layout]
    for error in refusals(changed(layout, tmp_path / "model", drops(local, one=one))):
        assert isinstance(error, UsageError)
        assert f"config.json states its {local}, which is missing" in error.message


@pytest.mark.slow
def test_a_layer_under_two_names_is_refused(tmp_path: Path) -> None:
    """Its codes in one spelling that transformers knows, a weight in the other."""

    def change(weights: Tensors, config: dict[str, Any]) -> None:
        codes = next(n for n in weights if n.endswith(".up_proj.qweight"))
        name = codes.replace("qweight", "weight")
        other = name.replace("model.layers.", "model.language_model.layers.")
        assert other != name
        weights[other] = torch.ones(64, 64, dtype=torch.bfloat16)

    folder = changed("gptq", tmp_path / "model", change)
    for error in refusals(folder):
        assert isinstance(error, UsageError)
        assert "are both the weight of one layer" in error.message


def test_a_checkpoint_that_was_overwritten_is_read_anew(tmp_path: Path) -> None:
    """In one process: the same names, other places in the file."""
    halves = []
    for layout in ("awq", "awq-32"):
        shutil.rmtree(tmp_path / "model", ignore_errors=True)
        shutil.copytree(quantized_checkpoint("awq"), tmp_path / "model")
        path = tmp_path / "model" / "model.safetensors"
        weights = load_file(path)
        if layout == "awq-32":
            weights = {n: w.float() if n.endswith("scales") else w for n, w in weights.items()}
            save_file(weights, path, metadata={"format": "pt"})
        half = load_half(tmp_path / "model", "language", dtype=torch.float32)
        halves.append({n: w.detach().clone() for n, w in half.named_parameters() if not w.is_meta})
    assert halves[0].keys() == halves[1].keys()
    assert all(torch.equal(halves[0][name], halves[1][name]) for name in halves[0])


@pytest.mark.slow
def test_layers_of_one_kind_have_the_same_tensors(tmp_path: Path) -> None:
    def change(weights: Tensors, config: dict[str, Any]) -> None:
        drops("weight_zero_point", one=True)(weights, config)
        (group,) = config["quantization_config"]["config_groups"].values()
        del group["weights"]["symmetric"]  # as old files leave it

    for error in refusals(changed("w4a16-old-zeros", tmp_path / "model", change)):
        assert "its weight_zero_point is missing, and I8 in" in error.message


def unstated(weights: Tensors, config: dict[str, Any]) -> None:
    del config["quantization_config"]


def without_scales(weights: Tensors, config: dict[str, Any]) -> None:
    unstated(weights, config)
    drops("weight_scale", one=False)(weights, config)


def as_bitsandbytes(weights: Tensors, config: dict[str, Any]) -> None:
    """Codes in 8 bit with the name that bitsandbytes gives their scales, and no settings."""
    unstated(weights, config)
    for name in [name for name in weights if name.endswith("weight_scale")]:
        weights[name.replace("weight_scale", "SCB")] = weights.pop(name).float().flatten()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "change"),
    [
        *((layout, unstated) for layout in ("w8a8", "fp8-row", "fp8-tensor", "awq")),
        ("w8a8", without_scales),
        ("w8a8", as_bitsandbytes),
    ],
)
def test_codes_that_no_setting_states_are_never_weights(
    layout: str, change: Change, tmp_path: Path
) -> None:
    for error in refusals(changed(layout, tmp_path / "model", change)):
        assert isinstance(error, UsageError)
        assert "but config.json has no quantization_config" in error.message


def test_a_plain_checkpoint_in_8_bit_floats_without_scales_is_cast(tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint("qwen2_5_vl"), tmp_path / "model")
    path = folder / "model.safetensors"
    plain = load_file(path)
    name = next(n for n in plain if n.endswith("layers.0.mlp.up_proj.weight") and "vis" not in n)
    plain[name] = plain[name].to(torch.float8_e4m3fn)
    save_file(plain, path, metadata={"format": "pt"})
    half = load_half(folder, "language", dtype=torch.float32)
    weights = [w for n, w in half.named_parameters() if n.endswith("layers.0.mlp.up_proj.weight")]
    assert torch.equal(weights[-1], plain[name].float())


@pytest.mark.parametrize("said", ["gptq", "gptq_v2", None])
@pytest.mark.parametrize("stored", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_symmetric_zeros_of_gptq_tell_their_version(
    bits: int, stored: str, said: str | None
) -> None:
    layout = LAYOUTS["gptq" if bits == 4 else f"gptq-{bits}"]
    tensors, meant = layout.quantize(noise(16, 64))
    if stored == "gptq_v2":  # each number of a word one more; none of them is the largest
        one = sum(1 << at for at in range(0, 32, bits))
        zeros = tensors["qzeros"].long() + one
        tensors["qzeros"] = ((zeros + 2**31) % 2**32 - 2**31).int()
    layer = layer_of(tensors, 16, 64, {**layout.settings, "checkpoint_format": said})
    assert torch.equal(read(tensors, layer), meant)


def test_symmetric_zeros_of_no_version_are_refused_by_name() -> None:
    tensors, _ = LAYOUTS["gptq-asymmetric"].quantize(noise(16, 64))
    layer = layer_of(tensors, 16, 64, GPTQ)
    with pytest.raises(UsageError, match=r"all its zeros are 7 \(version 1\) or 8 \(version 2\)"):
        codes_of(layer, tensors)


SHORT = (24, 40)
"""Rows and columns whose last group has 8 columns of 16."""


@pytest.mark.parametrize(
    "name",
    [
        *("awq", "gptq", "gptq-8", "gptq-asymmetric", "gptq-unsorted"),
        *("w4a16", "w4a16-asymmetric", "w4a16-old-zeros", "w4a16-unsorted", "w3a16", "w8a16"),
    ],
)
def test_a_short_last_group_is_read(name: str) -> None:
    layer, tensors, meant = layer_in(name, *SHORT)
    assert (layer.table, layer.block) == ((24, 3), (1, GROUP))
    assert torch.equal(read(tensors, layer), meant)
    by_headers = recognized([*layer.parts.values()], LAYOUTS[name].settings)["m.weight"]
    assert by_headers.rows == 24 and by_headers.columns in (40, 42)  # 3 bit: 4 words hold 42


def test_bytes_in_groups_may_have_a_short_last_one() -> None:
    made = rounded(noise(*SHORT), 8, torch.bfloat16, symmetric=True)
    tensors = {"weight": torch.from_numpy(made.codes - 128).to(torch.int8)}
    tensors["weight_scale"] = made.scales
    weights = {"num_bits": 8, "type": "int", "strategy": "group", "group_size": GROUP}
    layer = layer_of(tensors, *SHORT, compressed("int-quantized", weights))
    assert torch.equal(read(tensors, layer), made.meant)


def two(form: str, attention: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """Settings with a scheme of attention, and one of all other layers."""
    settings: dict[str, Any] = compressed(form, {"type": "int", **others})
    attention = {"targets": ["re:.*self_attn.*"], "weights": {"type": "int", **attention}}
    settings["config_groups"]["group_1"] = attention
    return settings


ROWS = {"num_bits": 8, "strategy": "channel"}
SMALL = {"num_bits": 4, "strategy": "group", "group_size": GROUP}
EACH: dict[str, tuple[dict[str, Any], Layout]] = {
    "rows of 8 bit": (ROWS, Layout(lambda w: _pack(w, 8, channel=True), {}, "w8a16")),
    "rows of 4 bit": (
        {**ROWS, "num_bits": 4},
        Layout(lambda w: _pack(w, channel=True), {}, "w4a16"),
    ),
    "bytes": ({**ROWS, "format": "int-quantized"}, Layout(_int8, {}, "w8a8")),
    "8 bit, asymmetric": (
        {**SMALL, "num_bits": 8, "symmetric": False},
        Layout(lambda w: _pack(w, 8, symmetric=False), {}, "w8a16"),
    ),
}
"""What attention is quantized to → settings and layout; the MLPs are in 4 bit, in groups."""


@pytest.mark.slow
@pytest.mark.parametrize("name", EACH)
def test_each_layer_is_read_by_the_scheme_of_its_target(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attention, layout = EACH[name]
    settings = two("mixed-precision", attention, SMALL)
    folder = tmp_path / "model"
    mlp = Layout(LAYOUTS["w4a16"].quantize, settings, "mixed")
    monkeypatch.setitem(LAYOUTS, "w8a16", layout)  # what `mixed` writes of attention
    monkeypatch.setitem(LAYOUTS, "w4a16", mlp)
    write_quantized(checkpoint("qwen2_5_vl"), folder, "mixed")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    assert describe(folder).language.stored_as in ("mixed", "w4a16")
    ids = torch.arange(10, 34)[None]
    halves = (
        load_half(each, "language", dtype=torch.float32) for each in (folder, twin_of(folder))
    )
    with torch.inference_mode():
        first, second = (half(input_ids=ids).logits for half in halves)
    assert torch.equal(first, second)


def test_gptq_reads_the_scheme_of_a_pattern() -> None:
    settings = {**GPTQ, "dynamic": {r"+:.*\.m$": {"bits": 8}, r"-:.*visual.*": {}}}
    tensors, meant = LAYOUTS["gptq-8"].quantize(noise(16, 64))
    headers = [header(f"a.m.{name}", tensor) for name, tensor in tensors.items()]
    layer = recognized(headers, settings)["a.m.weight"]
    assert layer.bits == 8 and torch.equal(read(tensors, layer), meant)
    with pytest.raises(UsageError, match="GPTQ, 4 bit, groups of 16"):
        recognized([each._replace(name=f"{each.name[2:]}") for each in headers], settings)


SPELLINGS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"quant_method": "gptq", "checkpoint_format": "GPTQ_V2", "sym": False}, {"v2": True}),
    ({"symmetric": 0}, {"has_zeros": True}),
    ({"symmetric": "false"}, {"has_zeros": True}),
    ({"desc_act": 1}, {"has_index": True}),
    ({"block_structure": "96x96"}, {"block": (96, 96)}),
    ({"weight_block_size": [96.0, 96.0]}, {"block": (96, 96)}),
    ({"group_size": 128.0}, {"group": 128}),
    ({"group_size": "128"}, {"group": 128}),
    ({"quant_method": "gptq", "bits": 4}, {"group": 128}),
    ({"quant_method": "awq", "bits": 4}, {"group": 128}),
    ({"strategy": "channel", "group_size": None}, {"group": -1}),
]
"""Settings, and what they mean. From `QuantizationArgs` of compressed-tensors, which takes the
first forms, and from the defaults of transformers' GPTQConfig and AwqConfig."""


@pytest.mark.parametrize(("stated", "meant"), SPELLINGS)
def test_settings_are_understood_in_every_spelling(
    stated: dict[str, Any], meant: dict[str, Any]
) -> None:
    scheme = Scheme.of(stated)
    assert {name: getattr(scheme, name) for name in meant} == meant


@pytest.mark.parametrize(
    "stated",
    [
        {"symmetric": "perhaps"},
        {"desc_act": [1]},
        {"block_structure": "96"},
        {"weight_block_size": [96.5, 96]},
        *({"weight_block_size": size} for size in ([0, 0], [None, 1], ["a", 5], [-1, 5], "x")),
        {"group_size": "128x"},
        {"bits": True},
        {"group_size": [128]},
    ],
)
def test_settings_that_are_not_understood_are_refused(stated: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="no value that Penstock understands"):
        Scheme.of(stated)


def grouped(**targets: int) -> dict[str, Any]:
    """Settings of one group of layers for each target: its size of groups."""
    names = {"mlp": "re:.*mlp.*", "gate": "re:.*gate.*", "foo": "re:foo.*", "bar": "re:bar.*"}
    return {
        "quant_method": "compressed-tensors",
        "config_groups": {
            target: {
                "targets": [names.get(target, target)],
                "weights": {"num_bits": 4, "strategy": "group", "group_size": size},
            }
            for target, size in targets.items()
        },
    }


def test_of_several_patterns_the_first_by_its_text_counts() -> None:
    """As `match_targets` of compressed-tensors, whatever the order in config.json."""
    layer = StoredLayer(name="a.mlp.gate_proj.weight", rows=8, columns=192)
    for stated in (grouped(mlp=96, gate=128), grouped(gate=128, mlp=96)):
        assert [each.group for each in Settings.of(stated).schemes_of(layer)] == [128]


def test_embeddings_have_the_scheme_of_their_class() -> None:
    layer = StoredLayer(name="model.embed_tokens.weight", rows=8, columns=192)
    stated = grouped(Linear=128, Embedding=96)
    assert [each.group for each in Settings.of(stated).schemes_of(layer)] == [96]
    other = replace(layer, name="model.lm_head.weight")
    assert [each.group for each in Settings.of(stated).schemes_of(other)] == [128]


def test_a_layer_that_no_target_names_has_no_scheme_by_chance() -> None:
    tensors, _ = LAYOUTS["w4a16"].quantize(noise(16, 64))
    size = 64 // tensors["weight_scale"].shape[1]
    with pytest.raises(UsageError, match="several schemes fit"):
        layer_of(tensors, 16, 64, grouped(foo=size, bar=size + 1))


def test_scales_of_what_goes_into_a_layer_are_refused() -> None:
    tensors, _ = LAYOUTS["gptq"].quantize(noise(16, 64))
    headers = [header(f"a.mlp.act.{name}", tensor) for name, tensor in tensors.items()]
    with pytest.raises(UsageError, match=r"a\.mlp\.act\.scales"):
        recognized(headers, GPTQ)


def test_the_size_of_groups_is_not_guessed() -> None:
    """Two groups of 192 columns may be of 96, or of 128 and 64."""
    layer = StoredLayer(name="m.weight", rows=8, columns=192)
    with pytest.raises(UsageError, match="2 groups of scales for 192 columns"):
        layouts._in_groups(layer, 2)
    assert layouts._in_groups(replace(layer, columns=256), 2).block == (1, 128)


@pytest.mark.parametrize("pattern", ["(a+)+b", "(.*)*x", ".*.*.*.*.*x", "(mlp"])
def test_a_pattern_that_may_take_hours_is_refused(pattern: str) -> None:
    settings = compressed("pack-quantized", SMALL)
    settings["config_groups"]["group_0"]["targets"] = [f"re:{pattern}"]
    tensors, _ = LAYOUTS["w4a16"].quantize(noise(16, 64))
    with pytest.raises(UsageError, match="by the pattern"):
        layer_of(tensors, 16, 64, settings)


def as_quanto(weights: Tensors, config: dict[str, Any]) -> None:
    """The names that optimum-quanto 0.2.7 gives 8-bit weights, and no settings."""
    unstated(weights, config)
    for name in [name for name in weights if name.endswith("weight_scale")]:
        stem = name.removesuffix("weight_scale")
        weights[f"{stem}weight._scale"] = weights.pop(name)
        weights[f"{stem}weight._data"] = weights.pop(f"{stem}weight")


def as_nobody(weights: Tensors, config: dict[str, Any]) -> None:
    as_quanto(weights, config)
    for name in [name for name in weights if name.endswith("weight._data")]:
        weights[name.replace("._data", ".codes")] = weights.pop(name)
    for name in [name for name in weights if name.endswith("weight._scale")]:
        del weights[name]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (as_quanto, "is stored by optimum-quanto"),
        (as_nobody, r"in a form that is not known here (weight.codes)"),
    ],
)
def test_an_unknown_form_is_refused_by_plan(change: Change, words: str, tmp_path: Path) -> None:
    for error in refusals(changed("w8a8", tmp_path / "model", change)):
        assert isinstance(error, UsageError) and words in error.message


def test_damage_is_said_only_of_bytes_that_no_program_wrote() -> None:
    tensors, _ = LAYOUTS["w4a16"].quantize(noise(16, 64))
    headers = [header(f"m.{name}", tensor) for name, tensor in tensors.items()]
    cut = [h._replace(size=h.size - 4) if h.name == "m.weight_packed" else h for h in headers]
    with pytest.raises(EnvironmentFault, match="its weight_packed has 508 bytes") as caught:
        recognized(cut, LAYOUTS["w4a16"].settings)
    assert "ownload" in caught.value.hint
    fewer = [h._replace(shape=(15, 4), size=120) if h.dtype == "BF16" else h for h in headers]
    with pytest.raises(UsageError, match=r"\(pack-quantized, 4 bit, groups of 16\): its weight_sc"):
        recognized(fewer, LAYOUTS["w4a16"].settings)


def test_the_table_of_other_programs_has_forty_cells_and_none_is_wrong() -> None:
    text = foreign.PAGE.read_text(encoding="utf-8")
    rows = divided(text, foreign.MARK)[1].splitlines()[2:]
    outcomes = [cell.strip() for row in rows for cell in row.strip("|").split("|")[2:]]
    judged = [outcome for outcome in outcomes if outcome != "not written"]
    assert len(judged) >= 40 and {*judged} == {"read", "refused"}
    assert all(len(row.strip("|").split("|")) == 2 + len(foreign.FAMILIES) for row in rows)
