"""Files of a model's folder that are missing, empty, cut or pointers are named before a library
reads them, and so is what a folder holds that is no checkpoint of transformers."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from artifacts.errors import EnvironmentFault, PenstockError, UsageError
from flows.cli.main import main
from stages.models import describe, load_half
from stages.models.hub.checkpoint import weight_names
from stages.models.hub.resolve import find_model
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
    if how != "missing":
        path.write_bytes(
            {"empty": b"", "pointer": POINTER, "cut": content[: len(content) // 2]}[how]
        )
    return copy


@pytest.mark.parametrize("how", ["missing", "empty", "cut", "pointer"])
@pytest.mark.parametrize("file", FILES)
def test_each_damaged_file_is_named_in_one_line(
    file: str, how: str, published: Path, tmp_path: Path
) -> None:
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
    folder = tmp_path / "model"
    shutil.copytree(published, folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "renormalize": float("nan")}))
    assert "NaN" in path.read_text()
    find_model(folder)


def test_json_that_no_loader_reads_may_be_anything(published: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(published, folder)
    (folder / "trainer_state.json").write_bytes(b"")
    (folder / "notes.txt").write_bytes(b"")
    find_model(folder)


def test_one_file_of_weights_goes_before_a_stale_index(published: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(published, folder)
    save_file(
        {name: tensor for shard in SHARDS for name, tensor in load_file(folder / shard).items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    for shard in SHARDS:
        (folder / shard).unlink()
    assert weight_names(folder) == ["model.safetensors"]
    expected = describe(published).parts["vision"].parameters
    assert describe(folder).parts["vision"].parameters == expected
    assert load_half(folder, "vision").num_parameters() == expected


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


def test_pickles_beside_other_weights_are_still_converted(published: Path, tmp_path: Path) -> None:
    for path in small(published):
        shutil.copy(path, tmp_path)
    for name in ("pytorch_model.bin", "tf_model.h5", "model.onnx", "training_args.bin"):
        (tmp_path / name).write_bytes(b"weights")
    with pytest.raises(UsageError, match=r"only as pickles \(pytorch_model.bin\)") as caught:
        describe(tmp_path)
    assert f"penstock convert {tmp_path} DST" in caught.value.hint


def test_files_that_lack_a_tensor_are_refused_before_a_run(tmp_path: Path) -> None:
    folder = families.copy_of("llava", tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("linear_1.bias"))
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EnvironmentFault, match=r"lacks 1 tensor of the model, such as .*linear_1"):
        describe(folder)
