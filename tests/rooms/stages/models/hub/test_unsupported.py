"""Checkpoints as people find them that are not read: each is refused in one line with the right
reason and a form that works."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from artifacts.errors import UsageError
from flows.core.machine.launch import DirectLauncher
from flows.interfaces.cli.main import main
from scripts.pages.tables import unsupported_section
from stages.models import describe, load_half, resolve_model
from stages.models.halves.model_class import load_config
from stages.models.hub.checkpoint import CONVERTED, NEAREST, refuse_original
from stages.models.hub.quantized import ignored_settings, refuse_unread
from stages.models.hub.resolve import find_model
from stages.models.hub.unsupported import UNSUPPORTED, UnsupportedForm, refuse_unsupported
from tests.support.builders.plan_cases import CASES, make_folder, plan_case
from tests.support.commands import completed
from tests.support.families import change_config, copy_of
from tests.support.hub import Repository, client, serve, use_cache
from tests.support.inside import InsideLauncher
from tests.support.quantized import FP8, LAYOUTS
from tests.support.tiny_families import FAMILIES

OF_NOBODY = {"architectures": ["SomebodysModel"], "model_type": "somebodys"}


def said_quantized(place: Path) -> Path:
    """A tiny LLaVA whose files are plain and whose configuration says that they are not."""
    gptq = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
    return copy_of("llava", place, quantization_config=gptq)


def compressed(**settings: Any) -> dict[str, Any]:
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", **settings}


UNREAD_SETTINGS: dict[str, dict[str, Any]] = {
    "by torchao": {"quant_method": "torchao", "quant_type": {"default": {}}},
    "by HQQ": {"quant_method": "hqq", "quant_config": {}},
    "gemv": {"quant_method": "awq", "bits": 4, "version": "gemv"},
    "gemv_fast": {"quant_method": "awq", "bits": 4, "version": "GEMV_FAST"},
    "by AWQ in another number of bits": {"quant_method": "awq", "bits": 8, "version": "gemm"},
    "by GPTQ in another number of bits": {"quant_method": "gptq", "bits": 3},
    "planar": {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_p"},
    "marlin": {"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"},
    "is marlin": {"quant_method": "gptq", "bits": 4, "is_marlin_format": True},
    "bitblas": {"quant_method": "gptq", "bits": 4, "format": "bitblas"},
    "in 2:4 sparse form": compressed(sparsity_config={"format": "sparse-24-bitmask"}),
    "2:4 by its format": compressed(format="marlin-24"),
    "transform_config": compressed(transform_config={"config_groups": {"u": {}}}),
    "another format than those of weights (mxfp8-quantized)": compressed(format="mxfp8-quantized"),
    "with experts in MXFP4": {"quant_method": "mxfp4"},
    "not known here (auto-round)": {"quant_method": "auto-round", "bits": 4},
    "not known here (quark)": {"quant_method": "quark"},
}
"""Part of the message → what config.json says."""


@pytest.mark.parametrize("form", UNREAD_SETTINGS)
@pytest.mark.parametrize("nested", [False, True])
def test_a_quantized_form_that_is_not_read_fails_before_anything_is_read(
    form: str, nested: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {"quantization_config": UNREAD_SETTINGS[form]}
    config = {"model_type": "internvl", **({"text_config": own} if nested else own)}
    folder, store = written(tmp_path / "model", config), tmp_path / "store"
    for source in ("https://no.such.host.example/clips.zip", str(tmp_path)):
        for command in (["caption", source], ["plan", source], ["plan", "--what-fits"]):
            code = main([*command, "--model", str(folder), "--store", str(store)])
            out, err = capsys.readouterr()
            line = err.splitlines()[-1]
            assert code == 2 and not out and "AWQ (gemm)" in line and "nf4" in line
            words_of_it = form.split(" by its")[0].removeprefix("is ")
            assert words_of_it in line, line
    with pytest.raises(UsageError, match="which Penstock does not read"):
        find_model(folder)


@pytest.mark.slow
def test_a_quantized_form_is_refused_without_torch_in_two_seconds(tmp_path: Path) -> None:
    own = {"quantization_config": UNREAD_SETTINGS["gemv"]}
    folder = written(tmp_path / "model", {"model_type": "internvl", **own})
    code = (
        "import sys, time; from flows.interfaces.cli.main import main; "
        f"code = main(['caption', 'nothing', '--model', {str(folder)!r}]); "
        "assert 'torch' not in sys.modules; assert time.process_time() < 2; sys.exit(code)"
    )
    found = completed([sys.executable, "-c", code])
    assert found.returncode == 2 and "gemv" in found.stderr, found.stderr


FP8_SETTINGS = LAYOUTS["fp8-block"].settings
EXPERTS: dict[str, tuple[dict[str, Any], dict[str, torch.dtype]]] = {
    "fp8": (FP8_SETTINGS, {"0.up_proj.weight": FP8, "0.up_proj.weight_scale_inv": torch.float32}),
    "fused fp8": (FP8_SETTINGS, {"up_proj": FP8, "up_proj_scale_inv": torch.float32}),
    "awq": (
        LAYOUTS["awq"].settings,
        {"0.up_proj.qweight": torch.int32, "0.up_proj.scales": torch.float16},
    ),
}
"""Settings of a mixture, and the types of tensors in place of its experts."""


@pytest.mark.slow
@pytest.mark.parametrize("form", EXPERTS)
def test_quantized_experts_are_refused_before_their_download(
    form: str, tmp_path: Path, connect: Callable[[str], None]
) -> None:
    settings, experts = EXPERTS[form]
    model, _ = FAMILIES["qwen3_vl_moe"]()
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    change_config(folder, quantization_config=settings)
    path = folder / "model.safetensors"
    held = {n: t for n, t in load_file(path).items() if ".experts." not in n}
    base = "model.language_model.layers.0.mlp.experts."
    held |= {base + name: torch.zeros(8, 8).to(dtype) for name, dtype in experts.items()}
    save_file(held, path, metadata={"format": "pt"})
    files = {each.name: each.read_bytes() for each in folder.iterdir()}
    with serve({"somebody/mixture": Repository(files=files)}) as hub:
        connect(hub.url)
        for name in (folder, "somebody/mixture"):
            with pytest.raises(UsageError, match=r"experts of this mixture are quantized") as it:
                describe(name)
            assert base in it.value.message and "16 bit" in it.value.hint
        assert hub.weights_sent() < path.stat().st_size


def test_settings_that_are_read_are_let_through_and_noted(tmp_path: Path) -> None:
    notes = {}
    for number, (name, layout) in enumerate(LAYOUTS.items()):
        folder = written(tmp_path / str(number), {"quantization_config": layout.settings})
        refuse_unread(name, folder)
        notes[name] = ignored_settings(folder)
    assert notes["awq"] == notes["w4a16"] == ""
    assert notes["w8a8"].startswith("the 8-bit activations that it was made for are not used")
    assert "kv_cache_scheme" in notes["fp8-row"] and "8-bit activations" in notes["fp8-row"]


@pytest.mark.slow
def test_a_plain_checkpoint_that_says_it_is_quantized_is_told_apart(tmp_path: Path) -> None:
    fault = "quantized by gptq, but its weights are not quantized"
    with pytest.raises(UsageError, match=fault) as it:
        describe(said_quantized(tmp_path / "model"))
    assert "quantization_config" in it.value.hint
    change_config(tmp_path / "model", quantization_config=None)
    assert describe(tmp_path / "model").language.stored_as == ""  # as the hint says


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        said_quantized,
        lambda place: make_folder(replace(plan_case("eva-clip-8b"), config=OF_NOBODY), place),
    ],
    ids=["quantized", "of no class"],
)
def test_a_plan_ends_with_the_line_that_stops_the_run(
    make: Callable[[Path], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inside = InsideLauncher()
    monkeypatch.setattr(DirectLauncher, "start", lambda _, call: inside.start(call))
    folder, image = make(tmp_path / "model"), tmp_path / "image.png"
    Image.new("RGB", (16, 16)).save(image)
    options = ["--model", str(folder), "--store", str(tmp_path / "store")]
    ended = []
    for command in (["caption", str(image)], ["plan", str(image)], ["plan"], ["plan", "--json"]):
        code = main([*command, *options])
        out, err = capsys.readouterr()
        ended.append((code, out, err.splitlines()[-1:]))
    (line,) = ended[0][2]
    assert line.startswith("penstock: ") and ended == [(2, "", [line])] * 4


def written(folder: Path, config: Any) -> Path:
    """A folder of weights that cannot be read, because nobody is to look at them."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"not opened")
    return folder


def stated(model_type: str, architecture: str, own: str = "", **more: Any) -> dict[str, Any]:
    """A config.json; `own`: the class of a configuration in its own code."""
    code = {"auto_map": {"AutoConfig": own}} if own else {}
    return {"model_type": model_type, "architectures": [architecture], **code, **more}


FLORENCE = ("florence2", "Florence2ForConditionalGeneration")
DAVIT = {"model_type": "davit"}
EXAMPLES: dict[str, dict[str, Any]] = {
    "Phi-4-multimodal": stated("phi4_multimodal", "Phi4MultimodalForCausalLM"),
    "Florence-2 of Microsoft": stated(
        *FLORENCE,
        "configuration_florence2.Florence2Config",
        text_config={"model_type": "florence2_language"},
        vision_config=DAVIT,
    ),
    "CogVLM, the first": stated(
        *("cogvlm", "CogVLMForCausalLM", "configuration_cogvlm.CogVLMConfig"),
        vocab_size=32000,
        vision_config={},
    ),
    "MiniCPM-V and MiniCPM-o up to 4.5": stated(
        "minicpmv", "MiniCPMV", "configuration_minicpm.MiniCPMVConfig"
    ),
    "InternVL in the form of its own code": stated(
        "internvl_chat", "InternVLChatModel", "configuration_internvl_chat.InternVLChatConfig"
    ),
    "Moondream": stated("moondream1", "HfMoondream", "hf_moondream.HfConfig"),
}
"""Name of a form → example of its configuration."""


@pytest.mark.parametrize("form", UNSUPPORTED, ids=lambda form: form.name)
def test_a_form_that_is_not_read_is_refused_with_one_that_works(
    form: UnsupportedForm, tmp_path: Path
) -> None:
    example = EXAMPLES[form.name]
    folder = written(tmp_path / "model", example)
    with pytest.raises(UsageError) as caught:
        describe(folder)
    message, hint = caught.value.message, caught.value.hint
    assert form.reason in message and hint == form.alternative
    assert "\n" not in message + hint and "again" not in hint and "vision half" not in message
    assert sum(other.found(example) for other in UNSUPPORTED) == 1
    if not form.own_code:
        with pytest.raises(UsageError, match="cannot be read"):
            refuse_unsupported(folder, trusted=True)
    elif "auto_map" in example:
        refuse_unsupported(folder, trusted=True)  # its own code may be tried


PUBLISHED_FLORENCE = stated(
    *FLORENCE,
    auto_map={
        "AutoConfig": "configuration_florence2.Florence2Config",
        "AutoModelForCausalLM": "modeling_florence2.Florence2ForConditionalGeneration",
    },
    text_config={"d_model": 1024, "encoder_layers": 12},
    vision_config=DAVIT,
)
"""config.json of microsoft/Florence-2-large-ft, shortened: its text_config states no type."""


@pytest.mark.parametrize("trusted", [False, True])
def test_florence_of_microsoft_is_refused_as_it_was_published(
    trusted: bool, tmp_path: Path
) -> None:
    folder = written(tmp_path / "model", PUBLISHED_FLORENCE)
    with pytest.raises(UsageError, match="in the form of the original code") as caught:
        describe(folder, trust_remote_code=trusted)
    assert "florence-community/Florence-2-large" in caught.value.hint


@pytest.mark.parametrize("name", ["quantization", "quantization_config"])
def test_mlx_is_named(name: str, tmp_path: Path) -> None:
    settings = {"group_size": 64, "bits": 4, "mode": "affine"}
    config = {"model_type": "qwen2_5_vl", name: settings}
    with pytest.raises(UsageError, match="stored by MLX"):
        describe(written(tmp_path / "model", config))


def test_a_class_of_another_type_than_config_json_states_is_refused(tmp_path: Path) -> None:
    """llava-hf/LLaVA-NeXT-Video-34B-hf was published so."""
    stated_class = ["LlavaNextVideoForConditionalGeneration"]
    changes = {"architectures": stated_class, "model_type": "llava_next"}
    folder = copy_of("llava", tmp_path / "model", **changes)
    with pytest.raises(UsageError, match="model_type is llava_next, and architectures") as caught:
        describe(folder)
    assert "Set model_type to llava_next_video" in caught.value.hint


CODE = """
import einops_that_nobody_has
from flash_attn_that_nobody_has.layers import rotary
import torch
from .configuration import Own

try:
    import optional_that_nobody_has
except ImportError:
    pass
"""


@pytest.mark.parametrize("trusted", [False, True])
def test_packages_that_own_code_imports_and_that_are_missing_are_named(
    trusted: bool, tmp_path: Path
) -> None:
    config = {"model_type": "own", "auto_map": {"AutoConfig": "modeling_own.Own"}}
    folder = written(tmp_path / "model", config)
    (folder / "modeling_own.py").write_text(CODE)
    with pytest.raises(UsageError) as caught:
        describe(folder, trust_remote_code=trusted)
    named = "imports einops_that_nobody_has, flash_attn_that_nobody_has, which this environment"
    install = "pip install einops_that_nobody_has flash_attn_that_nobody_has"
    assert named in caught.value.message and install in caught.value.hint
    assert ("--trust-remote-code" in caught.value.hint) != trusted


def test_own_code_that_fails_is_refused_in_one_line(tmp_path: Path) -> None:
    config = {"model_type": "own", "auto_map": {"AutoConfig": "modeling_own.Own"}}
    folder = written(tmp_path / "model", config)
    (folder / "modeling_own.py").write_text("from transformers import NothingOfThisName\n")
    (folder / "train.py").write_text("import trainer_that_nobody_has\n")
    with pytest.raises(UsageError, match=r"fails with transformers 5\.\d+\.\d+: ") as caught:
        describe(folder, trust_remote_code=True)
    assert "\n" not in str(caught.value) and "NothingOfThisName" in caught.value.message


@pytest.mark.parametrize("name", NEAREST)
def test_a_llava_video_is_told_what_comes_nearest(name: str, tmp_path: Path) -> None:
    config = {"architectures": ["LlavaQwenForCausalLM"], "mm_vision_tower": "x"}
    with pytest.raises(UsageError, match="in the form of the original LLaVA code") as caught:
        refuse_original(f"lmms-lab/{name}", written(tmp_path / "model", config))
    assert NEAREST[name] in caught.value.hint and "never converted" in caught.value.hint


def test_the_page_of_models_lists_them_as_its_script_writes_them() -> None:
    page = (Path(__file__).parents[5] / "docs" / "models.md").read_text()
    assert unsupported_section() in page and "## Graphs" in page.partition(unsupported_section())[2]


def test_forms_that_are_read_are_let_through(tmp_path: Path) -> None:
    configs = [json.loads(path.read_text())["config"] for path in sorted(CASES.glob("*.json"))]
    configs += [
        {"model_type": "florence2", "text_config": {"model_type": "bart"}},
        *({"model_type": n} for n in ("qwen2_5_omni", "qwen3_omni_moe", "internvl", "minicpmv4_6")),
        {"architectures": ["CogVLMForCausalLM"], "vocab_size": 128256},
        {"architectures": "CogVLMForCausalLM", "text_config": []},
        [],
    ]
    for number, config in enumerate(configs):
        refuse_unsupported(written(tmp_path / str(number), config), trusted=False)
    refuse_unsupported(tmp_path / "nowhere", trusted=False)


SETTINGS = {
    "architectures": ["LlavaLlamaForCausalLM"],
    "model_type": "llava",
    "hidden_size": 32,
    "mm_hidden_size": 32,
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
}
"""As the authors' code writes them."""
FORMS: dict[str, dict[str, Any]] = {
    "as the first ones": {},
    "with a type of its own": {"model_type": "llava_llama"},
    "on a third one": {"architectures": ["LlavaQwenForCausalLM"], "model_type": "llava_qwen"},
    "with the type of its text model": {"model_type": "llama"},
    "of code that followed it": {"architectures": ["BunnyForCausalLM"]},
    "without a class": {"architectures": None},
    "with its tower under another name": {"mm_vision_tower": None, "mm_image_tower": "x"},
}


@pytest.mark.parametrize("form", FORMS)
def test_an_original_checkpoint_fails_wherever_it_is_given(form: str, tmp_path: Path) -> None:
    folder = written(tmp_path / "my-own", {**SETTINGS, **FORMS[form]})
    uses: list[Callable[[], Any]] = [
        lambda: load_half(folder, "vision"),
        lambda: load_half(folder, "whole", trust_remote_code=True),
        lambda: describe(folder),
        lambda: resolve_model(str(folder)),
    ]
    for use in uses:
        with pytest.raises(UsageError, match="in the form of the original LLaVA code") as caught:
            use()
        assert str(folder) in caught.value.message and "\n" not in str(caught.value)
        assert "ends in -hf" in caught.value.hint


@pytest.mark.parametrize("name", [*CONVERTED][:2])
def test_the_converted_checkpoint_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_half(written(tmp_path / name, SETTINGS), "vision")
    assert f"Use {CONVERTED[name]}, the same model" in caught.value.hint
    assert CONVERTED[name].startswith("llava-hf/") and CONVERTED[name].endswith("-hf")


@pytest.fixture
def connect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    use_cache(tmp_path / "hub", monkeypatch)
    with client(monkeypatch) as to:
        yield to


def test_of_an_original_checkpoint_on_the_hub_no_weight_is_fetched(
    connect: Callable[[str], None],
) -> None:
    name = "liuhaotian/llava-v1.6-mistral-7b"
    files = {"config.json": json.dumps(SETTINGS).encode(), "model.safetensors": b"not fetched"}
    with serve({name: Repository(files=files)}) as hub:
        connect(hub.url)
        for use in (find_model, resolve_model, describe):
            with pytest.raises(UsageError, match=name) as caught:
                use(name)
            assert "llava-hf/llava-v1.6-mistral-7b-hf" in caught.value.hint
        assert hub.downloads() == ["config.json"]
    with pytest.raises(UsageError, match=name):
        load_half(name, "vision")  # the hub is gone by now


@pytest.mark.parametrize(
    ("values", "kind"), [(SETTINGS, "CausalLM"), ({"model_type": "of_its_own"}, "ImageTextToText")]
)
def test_one_that_brings_its_own_code_is_not_taken_for_one_of_transformers(
    values: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    code = {"auto_map": {"AutoConfig": "code.Config", f"AutoModelFor{kind}": "code.Model"}}
    folder = written(tmp_path / "own", {**values, **code})
    (folder / "code.py").write_text("raise SystemExit('must not run')\n")
    assert resolve_model(folder) == folder
    with pytest.raises(UsageError, match="brings its own Python code"):
        load_half(folder, "vision")


def test_a_converted_checkpoint_that_still_names_its_tower_is_loaded(tmp_path: Path) -> None:
    folder = copy_of("llava", tmp_path / "model", mm_vision_tower="somewhere")
    assert load_half(folder, "vision").get_submodule("model.vision_tower")


def test_an_omni_model_is_quantized_as_its_outer_configuration_states(tmp_path: Path) -> None:
    """Qwen/Qwen2.5-Omni-7B-AWQ states it beside thinker_config, whose layers it is about."""
    stated = {
        "model_type": "qwen2_5_omni",
        "thinker_config": {"model_type": "qwen2_5_omni_thinker"},
        "quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128},
    }
    config = load_config(written(tmp_path / "model", stated), trusted=False)
    assert config.model_type == "qwen2_5_omni_thinker"
    assert config.quantization_config["quant_method"] == "awq"


@pytest.mark.parametrize(
    "settings",
    [{"quant_method": "modelopt"}, {"producer": {"name": "modelopt"}, "quant_algo": "FP8"}],
)
def test_modelopt_is_named(settings: dict[str, Any], tmp_path: Path) -> None:
    config = {"model_type": "qwen2_5_vl", "quantization_config": settings}
    with pytest.raises(UsageError, match="stored by ModelOpt"):
        describe(written(tmp_path / "model", config))
