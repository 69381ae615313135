"""The script that tries published folders, on folders that the tests write: names of weights, small
configurations, sparse files, and what it says of rows that are and are not as the list expects."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from scripts.prove import published
from scripts.prove.comparing import Differs, pixel_difference
from scripts.prove.published import copy_folder, main, row_of
from scripts.prove.published_names import Kind, index_of, naming_of, saved_tensors
from scripts.prove.published_table import LIST, MARK, PAGE, Listed, PublishedList, Row
from scripts.prove.quantized_shapes import METHODS, is_quantized
from scripts.prove.small_config import small_config
from tests.support.builders.plan_cases import INDEX, Shape, write_sparse
from tests.support.families import checkpoint
from tests.support.quantized import GROUP, LAYOUTS

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

QWEN: dict[str, Any] = {
    "model_type": "qwen2_5_vl",
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "torch_dtype": "bfloat16",
    "vocab_size": 500,
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
        "fullatt_block_indexes": [7, 15, 23, 31],
    },
    "quantization_config": {"quant_method": "awq"},
}
"""A configuration as it was published in 2025, with its language model's numbers at the top."""


def config_of(values: dict[str, Any], folder: Path) -> Any:
    from transformers import AutoConfig

    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    return AutoConfig.from_pretrained(folder)


def test_small_config_keeps_the_form_of_rotary_positions_and_what_decides_pixels(
    tmp_path: Path,
) -> None:
    small = small_config(QWEN, config_of(QWEN, tmp_path))
    assert small["rope_scaling"] == {"type": "mrope", "mrope_section": [2, 3, 3]}
    assert (small["hidden_size"], small["num_attention_heads"]) == (64, 4)
    assert (small["num_hidden_layers"], small["vision_config"]["depth"]) == (2, 3)
    assert small["vision_config"]["out_hidden_size"] == small["hidden_size"]
    assert small["vision_config"]["fullatt_block_indexes"] == [0]
    assert (small["vocab_size"], small["torch_dtype"]) == (500, "float32")
    assert "patch_size" not in small["vision_config"], "what its class gives stays its own"
    assert "quantization_config" not in small and "quantization_config" in QWEN
    model = Kind.of(config_of(small, tmp_path)).build()
    assert sum(weight.numel() for weight in model.parameters()) < 1_000_000


def test_small_config_has_every_kind_of_layer(tmp_path: Path) -> None:
    text = {"model_type": "gemma3_text", "num_hidden_layers": 62, "vocab_size": 300}
    values = {"model_type": "gemma3", "text_config": text, "vision_config": {"vocab_size": 9}}
    small = small_config(values, config_of(values, tmp_path))
    kinds = config_of(small, tmp_path).text_config.layer_types
    assert len(kinds) == 6 and {*kinds} == {"sliding_attention", "full_attention"}


def small_model(tmp_path: Path) -> Any:
    small = small_config(QWEN, config_of(QWEN, tmp_path / "published"))
    return Kind.of(config_of(small, tmp_path / "small")).build()


def test_an_index_decides_names_and_what_is_not_written(tmp_path: Path) -> None:
    model = small_model(tmp_path)
    saved = saved_tensors(model)
    assert {"visual.patch_embed.proj.weight", "lm_head.weight"} <= {*saved}
    later = {f"model.{name}" if name.startswith("visual") else name for name in saved}
    index = tuple(sorted(later - {"lm_head.weight"} | {"mtp.0.weight"}))
    naming = naming_of(model, saved, index)
    assert (
        naming.names["visual.blocks.2.attn.qkv.weight"] == "model.visual.blocks.2.attn.qkv.weight"
    )
    assert naming.unpublished == ("lm_head.weight",)
    assert naming.unread == ("mtp.{}.weight",)
    assert "lm_head.weight" not in naming.names
    assert {*naming.names.values()} == {*index} - {"mtp.0.weight"}


def test_sparse_files_have_true_headers_and_take_no_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.support.builders.plan_cases.SHARD", 10**9)
    tensors = {f"w.{n}": Shape(dtype="BF16", shape=(20_000, 20_000)) for n in range(3)}
    assert write_sparse(tmp_path, tensors) == 3 * 800_000_000
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == 3 and {*index_of(tmp_path)} == {*tensors}
    assert all(path.stat().st_blocks * 512 < 100_000 for path in files)
    with safe_open(files[0], "pt") as file:
        assert file.get_slice("w.0").get_shape() == [20_000, 20_000]
        assert file.get_slice("w.0").get_dtype() == "BF16"


METHOD_OF = {"awq": "awq", "gptq": "gptq", "w4a16": "compressed-tensors"}


@pytest.mark.parametrize("layout", METHOD_OF)
def test_shapes_of_quantized_layers_are_those_that_other_programs_write(layout: str) -> None:
    known = LAYOUTS[layout]
    written, _ = known.quantize(torch.randn(64, 96))
    settings = {"group_size": GROUP, **known.settings}
    stated = METHODS[METHOD_OF[layout]](64, 96, settings)
    assert {name: one.shape for name, one in stated.items()} == {
        name: tuple(tensor.shape) for name, tensor in written.items()
    }
    bytes_written = sum(tensor.nbytes for tensor in written.values())
    assert sum(one.bytes for one in stated.values()) == bytes_written


def test_what_is_quantized_follows_the_index_and_else_the_settings() -> None:
    layer, vision = "model.layers.0.mlp.up_proj.weight", "visual.blocks.0.attn.qkv.weight"
    awq = {"quant_method": "awq", "modules_to_not_convert": ["layers.1."]}
    assert is_quantized(layer, awq, ())
    assert not is_quantized(vision, awq, ())
    assert not is_quantized(layer.replace("0", "1"), awq, ())
    assert not is_quantized("lm_head.weight", awq, ())
    index = (f"{vision.removesuffix('.weight')}.qweight", layer)
    assert is_quantized(vision, awq, index) and not is_quantized(layer, awq, index)
    ignoring = {"quant_method": "compressed-tensors", "ignore": ["re:visual.*"]}
    assert is_quantized(layer, ignoring, ()) and not is_quantized(vision, ignoring, ())


def test_pixels_of_another_shape_differ() -> None:
    ours, theirs = torch.zeros(2, 3), torch.ones(2, 3) / 4
    assert pixel_difference({"pixel_values": ours}, {"pixel_values": theirs}) == 0.25
    with pytest.raises(Differs, match=r"pixel_values has shape \[2, 3\], and \[3, 2\]"):
        pixel_difference({"pixel_values": ours}, {"pixel_values": theirs.T})


def snapshot_of(family: str, folder: Path) -> Path:
    """A published folder without its weights: a pointer is in their place."""
    shutil.copytree(checkpoint(family), folder)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    (folder / "model.safetensors").write_text(pointer)
    return folder


def listed(name: str, expect: str, **more: Any) -> Listed:
    return Listed(
        name=name,
        hub_id="who/what",
        repository="who/copy",
        commit="0" * 40,
        expect=expect,
        **more,
    )


def test_a_copy_has_no_weights_and_takes_from_a_lender_what_it_lacks(tmp_path: Path) -> None:
    lender = snapshot_of("llava", tmp_path / "lender")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text('{"model_type": "own"}')
    (tmp_path / "bare" / INDEX).write_text("{}")
    (tmp_path / "bare" / "layers" / "deep").mkdir(parents=True)
    for name in ("__init__.py", "notes.txt", "deep/rotary.py"):
        (tmp_path / "bare" / "layers" / name).write_text("")
    made = copy_folder(tmp_path / "bare", tmp_path / "made", lender)
    names = {path.name for path in made.iterdir()}
    assert "tokenizer.json" in names and not names & {"model.safetensors", INDEX}
    assert json.loads((made / "config.json").read_text()) == {"model_type": "own"}
    files = {path.relative_to(made / "layers").as_posix() for path in made.glob("layers/**/*.*")}
    assert files == {"__init__.py", "deep/rotary.py"}


@pytest.mark.slow
def test_a_row_is_refused_by_the_words_of_the_list_or_not_as_expected(tmp_path: Path) -> None:
    folder = snapshot_of("llava", tmp_path / "shots" / "odd")
    values = json.loads((folder / "config.json").read_text())
    values["quantization_config"] = {"quant_method": "hqq"}
    (folder / "config.json").write_text(json.dumps(values))
    row = row_of(listed("odd", "refused: by HQQ"), tmp_path / "shots", tmp_path / "work")
    assert row.good and "is stored by HQQ, which Penstock does not read" in row.result
    other = listed("odd", "refused: by torchao")
    assert not row_of(other, tmp_path / "shots", tmp_path / "again").good


def test_a_row_that_differs_or_is_not_there_fails_the_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = 'hub_id = "a/b"\nrepository = "c/d"\ncommit = "12345678"\n'
    words = f'[[folder]]\nname = "one"\n{entry}expect = "equal"\n'
    words += '[not_found]\n"x/y" = "nowhere"\n'
    (tmp_path / "list.toml").write_text(words)
    command = [str(tmp_path), "--list", str(tmp_path / "list.toml"), "--work", str(tmp_path / "w")]
    assert main(command) == 1
    assert "| not in SNAPSHOTS |" in capsys.readouterr().out

    def differing(*_: object) -> str:
        raise Differs("ids of picture: 3 and 4, the first at 2")

    monkeypatch.setattr(published, "compared_in_small", differing)
    snapshot_of("llava", tmp_path / "one")
    assert main(command) == 1
    assert "differs: ids of picture: 3 and 4, the first at 2" in capsys.readouterr().out
    monkeypatch.setattr(published, "compared_in_small", lambda *_: "equal: ids")
    monkeypatch.setattr(published, "planned_at_full_size", lambda *_: ("1.00 GB, the sum", True))
    page = tmp_path / "page.md"
    page.write_text(f"Before.\n<!-- {MARK} -->\nstale\n<!-- end of {MARK} -->\nBehind.\n")
    monkeypatch.setattr(published, "PAGE", page)
    assert main([*command, "--write"]) == 0
    text = page.read_text()
    assert text.startswith(f"Before.\n<!-- {MARK} -->\n| ") and text.endswith("Behind.\n")
    assert "| a/b | c/d@12345678 | llava | transformers | equal: ids | 1.00 GB, the sum |" in text
    assert "- x/y: nowhere\n" in text and "stale" not in text


def test_the_list_of_the_repository_can_be_read_and_the_page_has_its_table() -> None:
    known = PublishedList.read(LIST)
    names = [one.name for one in known.folders]
    assert len({*names}) == len(names)
    assert all(one.files_of in {"", *names} for one in known.folders)
    text = PAGE.read_text()
    for one in known.folders:
        row = Row(listed=one, result="", good=True)
        assert " | ".join(row.line().split(" | ")[:2]) in text, one.name
    with pytest.raises(ValueError, match="one expects 'alike'"):
        listed("one", "alike")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava"])
def test_a_folder_that_is_run_as_transformers_runs_it_is_equal(family: str, tmp_path: Path) -> None:
    snapshot_of(family, tmp_path / "shots" / "one")
    row = row_of(listed("one", "equal"), tmp_path / "shots", tmp_path / "work")
    assert row.result == "equal: ids, pixels, tokens (picture, video)"
    assert row.good and row.plan.endswith(", the sum")


@pytest.mark.slow
def test_a_folder_whose_prompt_is_written_otherwise_differs(tmp_path: Path) -> None:
    snapshot_of("llava", tmp_path / "shots" / "one")
    quoted = listed("one", "equal", turn="{media}\n{prompt} and more")
    row = row_of(quoted, tmp_path / "shots", tmp_path / "work")
    assert not row.good and row.result.startswith("differs: ids of picture")
