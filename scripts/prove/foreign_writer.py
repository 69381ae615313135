"""Has a program quantize tiny models, and notes the tokens of its own loading or decompression.

It runs in the program's own environment, without Penstock:

    python scripts/prove/foreign_writer.py PROGRAM SOURCES OUT

`PROGRAM` is a name in PROGRAMS. `scripts/prove/foreign.py` writes the folder `SOURCES`, and
compares what lies in `OUT`: a folder for each form and family, and a note of its name.
"""

import json
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

hf: Any = transformers
TOKENS = 12
GROUP = 32
"""Columns that share a scale."""
SPARED = ["re:.*vision.*", "re:.*visual.*", "re:.*multi_modal_projector.*", "re:.*lm_head"]
"""Modules that stay in 16 bit, as such checkpoints are published."""
ONLY_TEXT = ["vision_tower", "visual", "vision_model", "multi_modal_projector", "lm_head"]
MIXED_TARGETS = ["re:.*self_attn.*"]

Save = Callable[[Path, Path], Any]
"""Quantizes the model of a folder into another, and returns it in 32 bit as the program itself
reads it; None if only a refusal is looked for."""


def loaded(folder: Path, dtype: Any = torch.bfloat16, **options: Any) -> Any:
    model = hf.AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, **options)
    return model.eval()


def with_weights(source: Path, state: dict[str, Any]) -> Any:
    """Return the model in 32 bit with these weights in place of its own."""
    model = loaded(source, torch.float32)
    own = model.state_dict()
    assert own.keys() <= state.keys(), sorted(own.keys() - state.keys())[:3]
    model.load_state_dict({name: state[name].float() for name in own})
    return model


def tokens_of(model: Any, inputs: dict[str, Any]) -> list[int]:
    with torch.inference_mode():
        made = model.generate(
            **inputs, do_sample=False, max_new_tokens=TOKENS, min_new_tokens=TOKENS
        )
    return [int(token) for token in made[0][inputs["input_ids"].shape[1] :]]


def bitsandbytes(source: Path, to: Path, **options: Any) -> Any:
    config = hf.BitsAndBytesConfig(llm_int8_skip_modules=ONLY_TEXT, **options)
    loaded(source, quantization_config=config).save_pretrained(to)
    model = loaded(to, torch.float32)
    for weight in model.parameters():  # the loader leaves what is not quantized in 16 bit
        if weight.dtype == torch.bfloat16:
            weight.data = weight.data.float()
    return model


def scheme(bits: int, strategy: str, **more: Any) -> dict[str, Any]:
    size = {"group_size": GROUP} if strategy == "group" else {}
    return {"num_bits": bits, "type": "int", "strategy": strategy, "symmetric": True} | size | more


FLOAT8 = {"type": "float", "symmetric": True}
W4, W4_ROWS, W8_ROWS = scheme(4, "group"), scheme(4, "channel"), scheme(8, "channel")
INPUTS = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True, "symmetric": True}
COMPRESSED: dict[str, tuple[dict[str, Any], dict[str, Any] | None, dict[str, Any] | None]] = {
    "W4A16, groups": (W4, None, None),
    "W4A16, asymmetric": ({**W4, "symmetric": False}, None, None),
    "W4A16, rows": (W4_ROWS, None, None),
    "W4A16, actorder": ({**W4, "actorder": "weight"}, None, None),
    "W3A16, groups": (scheme(3, "group"), None, None),
    "W8A16, rows": (W8_ROWS, None, None),
    "W8A8": (W8_ROWS, INPUTS, None),
    "FP8, rows": (scheme(8, "channel", **FLOAT8), {**INPUTS, **FLOAT8}, None),
    "FP8, tensor": (scheme(8, "tensor", **FLOAT8), {**INPUTS, **FLOAT8}, None),
    "FP8, blocks": (
        scheme(8, "block", block_structure=[128, 128], **FLOAT8),
        {**INPUTS, **FLOAT8},
        None,
    ),
    "attention W8 in rows, MLPs W4 in groups": (W4, None, W8_ROWS),
    "attention W4 in groups of 64, MLPs in groups of 32": (W4, None, {**W4, "group_size": 64}),
    "attention W8A8, MLPs W4A16, asymmetric": (
        {**W4, "symmetric": False},
        None,
        {**W8_ROWS, "inputs": INPUTS},
    ),
}
"""Form → settings of weights and of inputs, and those of attention's weights where they differ."""


def groups_of(form: str) -> dict[str, Any]:
    """Return the `config_groups` of a form of compressed-tensors."""
    weights, inputs, attention = COMPRESSED[form]
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}}
    if attention is not None:
        own = dict(attention)
        inputs = own.pop("inputs", None)
        groups["group_1"] = {
            "targets": MIXED_TARGETS,
            "weights": own,
            "input_activations": inputs,
        }
        groups["group_0"]["targets"] = ["re:.*mlp.*"]
    return groups


def decompressed(model: Any, source: Path) -> Any:
    """Return the model in 32 bit as compressed-tensors decompresses it."""
    from compressed_tensors.compressors import ModelCompressor

    ModelCompressor.from_pretrained_model(model).decompress_model(model)
    return with_weights(source, model.state_dict())


def compressed_tensors(source: Path, to: Path, *, form: str) -> Any:
    """By compressed-tensors alone: scales by the least and the largest number."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
    from compressed_tensors.quantization.utils import calculate_qparams

    model = loaded(source)
    config = QuantizationConfig(config_groups=groups_of(form), ignore=SPARED)
    apply_quantization_config(model, config)
    for module in model.modules():
        if (own := getattr(module, "quantization_scheme", None)) is None:
            continue
        low, high = extremes(module.weight.data.float(), own.weights)
        scale, zero = calculate_qparams(low, high, own.weights)
        module.weight_scale.data = scale.to(module.weight.dtype)
        if hasattr(module, "weight_zero_point"):
            module.weight_zero_point.data = zero.to(module.weight_zero_point.dtype)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(to)
    compressor.update_config(str(to))
    return decompressed(model, source)


def extremes(weight: Any, settings: Any) -> tuple[Any, Any]:
    """Return the least and the largest number of each part of a weight that shares a scale."""
    rows, columns = weight.shape
    strategy = str(getattr(settings.strategy, "value", settings.strategy))
    if strategy == "block":
        tall, wide = settings.block_structure
        parts = [[p for p in row.split(wide, 1)] for row in weight.split(tall, 0)]
        low = torch.tensor([[float(part.min()) for part in row] for row in parts])
        high = torch.tensor([[float(part.max()) for part in row] for row in parts])
        return low, high
    shape = {"tensor": (1, 1, -1), "channel": (rows, 1, -1)}
    groups = weight.reshape(shape.get(strategy, (rows, -1, settings.group_size or columns)))
    low, high = groups.amin(-1), groups.amax(-1)
    return (low.flatten(), high.flatten()) if strategy == "tensor" else (low, high)


def llm_compressor(source: Path, to: Path, *, form: str = "", preset: str = "") -> Any:
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier

    model = loaded(source)
    how: dict[str, Any] = {"scheme": preset, "targets": "Linear"} if preset else {}
    how = how or {"config_groups": groups_of(form)}
    oneshot(model=model, recipe=QuantizationModifier(ignore=SPARED, **how))
    model.save_pretrained(to, save_compressed=True)
    return decompressed(model, source)


def quanto(source: Path, to: Path, *, kind: str) -> None:
    from optimum import quanto as program

    model = loaded(source)
    program.quantize(model, weights=getattr(program, kind), exclude=["*visual*", "*vision*"])
    program.freeze(model)
    shutil.copytree(source, to)
    save_file({n: t for n, t in flat(model.state_dict())}, to / "model.safetensors")
    with (to / "quanto_qmap.json").open("w") as file:
        json.dump(program.quantization_map(model), file)


def flat(state: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Return tensors of their own memory: those that are tied are stored once."""
    seen = set[int]()
    for name, tensor in state.items():
        if isinstance(tensor, torch.Tensor) and (
            not tensor.numel() or tensor.data_ptr() not in seen
        ):
            seen.add(tensor.data_ptr())
            yield name, tensor.contiguous().clone()


def torchao(source: Path, to: Path, *, kind: str, **options: Any) -> None:
    import torchao.quantization as program

    config = hf.TorchAoConfig(getattr(program, kind)(**options), modules_to_not_convert=ONLY_TEXT)
    model = loaded(source, quantization_config=config)
    model.save_pretrained(to)


def hqq(source: Path, to: Path) -> None:
    config = hf.HqqConfig(nbits=4, group_size=GROUP, skip_modules=ONLY_TEXT)
    loaded(source, quantization_config=config).save_pretrained(to)


def auto_round(source: Path, to: Path, *, form: str, bits: int = 4, sym: bool = True) -> Any:
    """By rounding to the nearest, which needs no text to calibrate with."""
    from auto_round import AutoRound

    model = loaded(source)
    words = hf.AutoTokenizer.from_pretrained(source)
    processor = hf.AutoProcessor.from_pretrained(source)
    program = AutoRound(
        model, words, processor=processor, bits=bits, group_size=GROUP, sym=sym, iters=0
    )
    program.quantize_and_save(str(to), format=form)
    made = next(to.rglob("config.json")).parent
    if made != to:
        for path in made.iterdir():
            shutil.move(path, to / path.name)
    return loaded(to, torch.float32, quantization_config=hf.AutoRoundConfig(backend="torch"))


PROGRAMS: dict[str, tuple[str, dict[str, Save]]] = {
    "bitsandbytes": (
        "bitsandbytes",
        {
            "8 bit": partial(bitsandbytes, load_in_8bit=True),
            "NF4": partial(bitsandbytes, load_in_4bit=True, bnb_4bit_quant_type="nf4"),
            "NF4, nested": partial(
                bitsandbytes,
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
            ),
            "FP4": partial(bitsandbytes, load_in_4bit=True, bnb_4bit_quant_type="fp4"),
        },
    ),
    "compressed-tensors": (
        "compressed-tensors",
        {form: partial(compressed_tensors, form=form) for form in COMPRESSED},
    ),
    "llm-compressor": (
        "llmcompressor",
        {
            **{form: partial(llm_compressor, form=form) for form in COMPRESSED if "MLPs" in form},
            **{
                f"{preset}, as preset": partial(llm_compressor, preset=preset)
                for preset in (
                    *("W4A16", "W4A16_ASYM", "W8A8", "FP8_DYNAMIC", "FP8_BLOCK"),
                    *("NVFP4A16", "MXFP4A16", "W7A16", "MXFP8A16"),
                )
            },
        },
    ),
    "optimum-quanto": (
        "optimum-quanto",
        {kind: partial(quanto, kind=kind) for kind in ("qint8", "qint4", "qfloat8")},
    ),
    "torchao": (
        "torchao",
        {
            "int8": partial(torchao, kind="Int8WeightOnlyConfig", version=2),
            "int4": partial(torchao, kind="Int4WeightOnlyConfig", group_size=GROUP),
            "float8": partial(torchao, kind="Float8WeightOnlyConfig"),
        },
    ),
    "HQQ": ("hqq", {"4 bit": hqq}),
    "auto-round": (
        "auto-round",
        {
            "auto_gptq": partial(auto_round, form="auto_gptq"),
            "auto_gptq, asymmetric": partial(auto_round, form="auto_gptq", sym=False),
            "auto_gptq, 8 bit": partial(auto_round, form="auto_gptq", bits=8),
            "auto_awq": partial(auto_round, form="auto_awq"),
            "auto_round": partial(auto_round, form="auto_round"),
        },
    ),
}
"""Program → its package, and its forms."""


def write(program: str, sources: Path, out: Path) -> None:
    package, forms = PROGRAMS[program]
    packages = {
        package,
        "torch",
        "transformers",
        *(("compressed-tensors",) if "comp" in program else ()),
    }
    versions = {name: version(name) for name in sorted(packages)}
    for source in sorted(path for path in sources.iterdir() if path.is_dir()):
        for form, save in forms.items():
            to = out / f"{program}-{form}-{source.name}".replace(" ", "_").replace(",", "")
            if (note := to.with_suffix(".json")).exists():
                continue
            shutil.rmtree(to, ignore_errors=True)
            about: dict[str, Any] = {
                "program": program,
                "form": form,
                "family": source.name,
                "versions": versions,
            }
            try:
                model = save(source, to)
                for path in source.iterdir():  # what the program leaves out
                    if not (to / path.name).exists() and path.name != "model.safetensors":
                        shutil.copy(path, to / path.name)
                inputs = load_file(source / "inputs.safetensors")
                about["tokens"] = None if model is None else tokens_of(model, inputs)
            except Exception as error:
                traceback.print_exc()
                about["failed"] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            note.write_text(json.dumps(about))
            print(to.name, about.get("tokens"), about.get("failed", ""), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    write(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
