"""Files of a model's folder that are missing, empty, cut or pointers are named before a library
reads them, and so is what a folder holds that is no checkpoint of transformers."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from operator import methodcaller
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from artifacts.errors import EnvironmentFault, PenstockError, UsageError
from flows.interfaces.cli.main import main
from stages.models import describe, load_half
from stages.models.hub.checkpoint import weight_names
from stages.models.hub.resolve import find_model
from stages.models.processors.input_layout import layout_of
from stages.models.processors.loading import load_processor
from stages.models.processors.processor_calls import write
from tests.support import families

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%b\nsize 4096\n" % (b"0" * 64)
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
OPTIONAL = ("chat_template.jinja", "generation_config.json", "tokenizer_config.json")
"""Files without which transformers loads the model, too. (Its own defaults then apply.)"""
OPTIONAL_PARTS = ("processor_config.json", "video_preprocessor_config.json")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in the files of Qwen2.5-VL's hub folder: settings of images and videos apart,
    weights in two files with an index."""
    folder = tmp_path_factory.mktemp("published") / "model"
    shutil.copytree(families.checkpoint("qwen2_5_vl"), folder)
    settings = json.loads((folder / "processor_config.json").read_text())
    images = {**settings.pop("image_processor"), "processor_class": settings["processor_class"]}
    (folder / "preprocessor_config.json").write_text(json.dumps(images))
    videos = settings.pop("video_processor")
    (folder / "video_preprocessor_config.json").write_text(json.dumps(videos))
    (folder / "processor_config.json").write_text(json.dumps(settings))
    write_shards(folder)
    return folder


def write_shards(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    files = {name: SHARDS[at % 2] for at, name in enumerate(names)}
    for shard in SHARDS:
        part = {name: weights[name] for name in names if files[name] == shard}
        save_file(part, folder / shard, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


FILES = (
    *("config.json", "generation_config.json", "chat_template.jinja", "tokenizer.json"),
    *("tokenizer_config.json", "preprocessor_config.json", "video_preprocessor_config.json"),
    *("processor_config.json", "model.safetensors.index.json", *SHARDS),
)


def damaged(folder: Path, copy: Path, file: str, how: str) -> Path:
    shutil.copytree(folder, copy)
    path = copy / file
    content = path.read_bytes()
    path.unlink()
    contents = {"empty": b"", "pointer": POINTER, "cut": content[: len(content) // 2]}
    if how != "missing":
        path.write_bytes(contents[how])
    return copy


@pytest.mark.parametrize("how", ["a byte order mark", "UTF-16", "a folder", "a broken link"])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer.json"])
def test_files_that_a_library_would_pass_over_are_named(
    file: str, how: str, published: Path, tmp_path: Path
) -> None:
    shutil.copytree(published, folder := tmp_path / "model")
    path = folder / file
    text = path.read_text()
    path.unlink()
    if how == "a folder":
        path.mkdir()
    elif how == "a broken link":
        path.symlink_to("nowhere")
    else:
        path.write_text(text, encoding="utf-16" if how == "UTF-16" else "utf-8-sig")
    with pytest.raises(PenstockError, match=file.replace(".", r"\.")):
        find_model(folder)


@pytest.mark.in_turn
@pytest.mark.parametrize("how", ["missing", "empty", "cut", "pointer"])
@pytest.mark.parametrize("file", FILES)
def test_damaged_files_are_named_each(file: str, how: str, published: Path, tmp_path: Path) -> None:
    folder = damaged(published, tmp_path / "model", file, how)
    if how == "missing" and file in OPTIONAL + OPTIONAL_PARTS:
        find_model(folder)
        return
    with pytest.raises(PenstockError) as caught:
        describe(folder)
    text = str(caught.value)
    assert file in text or (how, file) == ("missing", SHARDS[1])
    assert "\n" not in text and caught.value.hint
    assert type(caught.value) in (EnvironmentFault, UsageError)
    if how == "pointer":
        assert "git lfs pull" in caught.value.hint


@pytest.mark.slow
def test_the_published_files_are_read_as_they_are(published: Path) -> None:
    assert describe(published).modalities == ("image", "video")


def test_plan_refuses_a_pointer_before_any_stage(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = damaged(published, tmp_path / "model", "tokenizer.json", "pointer")
    Image.new("RGB", (64, 48)).save(photo := tmp_path / "photo.png")
    code = main(["plan", str(photo), "--model", str(folder), "--store", str(tmp_path / "store")])
    error = capsys.readouterr().err
    assert code == 5 and error.count("penstock: ") == 1 and "Traceback" not in error
    assert f"{folder}/tokenizer.json cannot be used: it is a Git LFS pointer. Run `git lfs" in error


def test_numbers_that_python_alone_writes_are_read(published: Path, tmp_path: Path) -> None:
    shutil.copytree(published, folder := tmp_path / "model")
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "renormalize": float("nan")}))
    assert "NaN" in path.read_text()
    find_model(folder)


def test_json_that_no_loader_reads_may_be_anything(published: Path, tmp_path: Path) -> None:
    shutil.copytree(published, folder := tmp_path / "model")
    for name in ("trainer_state.json", "notes.txt"):
        (folder / name).touch()
    find_model(folder)


@pytest.mark.slow
def test_one_file_of_weights_goes_before_a_stale_index(published: Path, tmp_path: Path) -> None:
    shutil.copytree(published, folder := tmp_path / "model")
    tensors: dict[str, torch.Tensor] = {}
    for shard in SHARDS:
        tensors |= load_file(folder / shard)
        (folder / shard).unlink()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert weight_names(folder) == ["model.safetensors"]
    expected = describe(published).parts["vision"].parameters
    assert describe(folder).parts["vision"].parameters == expected
    parameters = load_half(folder, "vision").parameters()
    assert sum(parameter.numel() for parameter in parameters) == expected


FOREIGN = {
    "adapter_config.json": ("adapter_model.safetensors", "--adapter"),
    "open_clip_config.json": ("open_clip_model.safetensors", "transformers' layout"),
    "model_index.json": ("unet.safetensors", "docs/models.md"),
    "modules.json": ("config_sentence_transformers.json", "0_CLIPModel"),
    "consolidated.safetensors": ("params.json", "transformers' layout"),
    "model-q4_k_m.gguf": ("README.md", "--language-gguf"),
    "vision_model.onnx": ("README.md", "export --to onnx"),
    "tf_model.h5": ("README.md", "model.safetensors"),
    "flax_model.msgpack": ("README.md", "model.safetensors"),
}


@pytest.mark.in_turn
@pytest.mark.parametrize("has_config", [False, True])
@pytest.mark.parametrize("file", FOREIGN)
def test_what_a_folder_holds_instead_of_a_checkpoint_is_named(
    file: str, has_config: bool, published: Path, tmp_path: Path
) -> None:
    beside, hint = FOREIGN[file]
    if has_config:
        for path in small(published):
            shutil.copy(path, tmp_path)
    for name in (file, beside):
        (tmp_path / name).write_text("{}")
    with pytest.raises(UsageError) as caught:
        describe(tmp_path)
    assert hint in caught.value.hint and f"{tmp_path} holds " in caught.value.message
    assert "config.json" not in caught.value.message and "\n" not in str(caught.value)


def small(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if "safetensors" not in path.name)


@pytest.mark.slow
def test_pickles_beside_other_weights_are_still_converted(published: Path, tmp_path: Path) -> None:
    for path in small(published):
        shutil.copy(path, tmp_path)
    for name in ("pytorch_model.bin", "tf_model.h5", "model.onnx", "training_args.bin"):
        (tmp_path / name).write_bytes(b"weights")
    with pytest.raises(UsageError, match=r"only as pickles \(pytorch_model.bin\)") as caught:
        describe(tmp_path)
    assert f"penstock convert {tmp_path} DST" in caught.value.hint


def test_files_that_lack_a_tensor_are_refused_before_a_run(tmp_path: Path) -> None:
    def drop(weights: dict[str, torch.Tensor]) -> None:
        del weights[next(name for name in weights if name.endswith("linear_1.bias"))]

    with pytest.raises(EnvironmentFault, match=r"lacks 1 tensor of the model, such as .*linear_1"):
        describe(changed(tmp_path / "model", drop))


def changed(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    weights = load_file(families.copy_of("llava", folder) / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.slow
def test_a_tensor_of_another_shape_or_of_whole_numbers_is_refused(tmp_path: Path) -> None:
    weights = load_file(families.checkpoint("llava") / "model.safetensors")
    name = next(name for name in weights if "q_proj" in name)
    longer, whole = torch.zeros(7, weights[name].shape[1]), weights[name].to(torch.int8)
    for number, (made, kind, words) in enumerate(
        [
            (longer, EnvironmentFault, "of the checkpoint has the shape"),
            (whole, UsageError, "is quantized (I8), but config.json has no quantization_config"),
        ]
    ):
        folder = changed(tmp_path / str(number), methodcaller("update", {name: made}))
        with pytest.raises(kind, match=re.escape(f"{name} {words}")):
            describe(folder)


def test_more_layers_than_config_json_states_are_refused(tmp_path: Path) -> None:
    """transformers leaves them out with a warning, and captions with what is left."""
    folder = families.copy_of("llava", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] -= 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(EnvironmentFault, match=r"holds .*layers\.1, and its config.json states"):
        describe(folder)


def test_layers_that_predict_several_tokens_may_be_left_over(tmp_path: Path) -> None:
    def add(weights: dict[str, torch.Tensor]) -> None:
        first = [name for name in weights if "language_model" in name and ".layers.0." in name]
        for name in first:
            weights[name.replace(".layers.0.", ".layers.9.")] = weights[name].clone()
        weights[first[0].partition(".layers.")[0] + ".layers.9.eh_proj.weight"] = torch.ones(2, 2)

    assert describe(changed(tmp_path / "model", add)).parts["language"].layers == 2


def test_a_template_of_the_tokenizer_writes_the_turn(tmp_path: Path) -> None:
    """As users work around a missing chat_template.jinja: the prompt is written alike."""
    whole = families.checkpoint("qwen2_5_vl")
    shutil.copytree(whole, folder := tmp_path / "model")
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))
    written = [
        write(processor, layout_of(processor, "images").form, "images", 1, "What?")
        for processor in map(load_processor, (whole, folder))
    ]
    assert written[0] == written[1] and "vision_start" in written[0]


@pytest.mark.slow
def test_a_missing_template_of_a_chat_model_is_noted(tmp_path: Path) -> None:
    shutil.copytree(families.checkpoint("qwen2_5_vl"), folder := tmp_path / "model")
    assert not describe(folder).lacks_template
    (folder / "chat_template.jinja").unlink()
    assert describe(folder).lacks_template


def test_an_adapter_beside_a_whole_model_is_refused(tmp_path: Path) -> None:
    folder = families.copy_of("llava", tmp_path / "model")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError, match="holds an adapter"):
        describe(folder)
