"""A vision half whose layers come one after the other gives, to the bit, what it gives with all of
them there."""

import gc
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from artifacts.errors import CannotFit, EnvironmentFault, OutOfMemory
from artifacts.keys import digest_of
from artifacts.tensors import pack_tree
from benchmarks._models import FRAMES, TINY, Shape, build, publish_clips
from stages.models.encoding.batch import encode_batches
from stages.models.halves.features import encode
from stages.models.halves.routes import choose_route
from stages.models.loading import ModelJob, facts
from stages.models.processors.prepare import prepare
from stages.models.streaming.load import StreamedLayers, cross, streamed_layers
from stages.process.stage_process import StageProcess
from tests.support.clips import clips
from tests.support.families import BUILDERS, checkpoint
from tests.support.tiny_families import FAMILIES
from tests.support.waves import FEATURES, Wave

PLAIN = [name for name in FAMILIES if ":" not in name]
WITHOUT_LAYERS = {"chameleon", "fuyu", "gemma4_unified"}
"""Of tiny families: those that see with a linear layer alone, or in one block a stage."""
QUICK = {"emu3", "florence2", "gemma3n", "kimi_k25", "qwen3_omni_moe_thinker"}
"""One of each kind that is unlike the others."""
ALL = 256
CAUGHT: Any = {"capture_output": True, "text": True, "check": True}


def layers_of(half: Any) -> StreamedLayers:
    found = streamed_layers(half)
    assert found is not None
    return found


def payloads(wave: Wave) -> list[bytes]:
    record_set, count = wave.record_set("features", FEATURES), sum(map(len, wave.batches))
    found = [bytes(record_set.read(f"features-{n}").payload) for n in range(count)]
    record_set.drop([f"features-{n}" for n in range(count)])
    return found


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", BUILDERS)
def test_features_are_those_of_a_resident_half(family: str, dtype: str, tmp_path: Path) -> None:
    video, images = clips("video", 5), clips("image", 2)
    batches = [video[:2], images, video[2:4], video[4:]]
    wave = Wave(tmp_path / "store", checkpoint(family), batches, dtype=dtype)
    wave.encode()
    resident = payloads(wave)
    for block in (ALL, 3, 1):
        wave.settings |= {"offload": True, "block": block}
        told = wave.encode()
        assert payloads(wave) == resident
        assert next(note["bytes_fetched_a_pass"] for note in told if "ready" in note) > 0


def test_layers_come_once_for_a_whole_block() -> None:
    processor = ModelJob(model=str(checkpoint("llava"))).processor()
    half = ModelJob(model=str(checkpoint("llava")), offload=True).load("vision")
    rows = [[prepare(processor, clip) for clip in clips("video", 2)] for _ in range(6)]
    encode_batches(half, rows)
    layers = layers_of(half)
    assert layers.count == 3
    assert layers.slabs.fetched <= layers.count + 1  # and the first again, for who follows


@pytest.mark.parametrize(
    "variant",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in PLAIN],
)
def test_every_family_can_be_streamed(variant: str, tmp_path: Path) -> None:
    """Those whose weights are arranged anew, and those that need a piece of the other half, too."""
    torch.manual_seed(0)
    model, inputs = FAMILIES[variant]()
    model.save_pretrained(tmp_path)
    if choose_route(model).route == "joint":
        return
    if variant in WITHOUT_LAYERS:
        with pytest.raises(CannotFit, match="no layers"):
            ModelJob(model=str(tmp_path), offload=True).load("vision")
        return
    whole = ModelJob(model=str(tmp_path)).hold("vision")
    wanted = whole.use(lambda half: encode(half, inputs))
    held = ModelJob(model=str(tmp_path), offload=True).hold("vision")
    for found in held.use(lambda half: cross(half, [partial(encode, half, inputs)] * 3)):
        assert pack_tree(dict(found)) == pack_tree(dict(wanted))


def test_weights_stored_in_another_type_are_cast_as_they_come(tmp_path: Path) -> None:
    folder = checkpoint("qwen2_5_vl")
    processor = ModelJob(model=str(folder)).processor()
    rows = [[prepare(processor, clip) for clip in clips("video", 2)]]
    for dtype in ("bfloat16", "float16", "float32"):
        job = {"model": str(folder), "dtype": dtype}
        whole = encode_batches(ModelJob(**job).load("vision"), rows)  # type: ignore[arg-type]
        half = ModelJob(**job, offload=True).load("vision")  # type: ignore[arg-type]
        found = encode_batches(half, rows)
        assert [pack_tree(r.to_tree()) for r in found[0]] == [
            pack_tree(r.to_tree()) for r in whole[0]
        ]
    assert layers_of(half).bytes == facts(half)["bytes_fetched_a_pass"]


def test_a_file_that_ends_too_soon_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    model, inputs = FAMILIES["llava"]()
    model.save_pretrained(folder)
    half = ModelJob(model=str(folder), offload=True).load("vision")
    weights = folder / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 4)
    with pytest.raises(EnvironmentFault, match=r"model\.safetensors is not a whole"):
        cross(half, [partial(encode, half, inputs)])


def test_a_nan_in_a_layer_is_seen(tmp_path: Path) -> None:
    """That layers really come from the file, and not from anywhere else."""
    model, inputs = FAMILIES["llava"]()
    model.save_pretrained(tmp_path)
    half = ModelJob(model=str(tmp_path), offload=True).load("vision")
    weights = load_file(tmp_path / "model.safetensors")
    name = next(n for n in weights if "layers.1." in n and "vision" in n and n.endswith("weight"))
    weights[name].fill_(float("nan"))
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (found,) = cross(half, [partial(encode, half, inputs)])
    assert found["image"]["pooler_output"][0].isnan().any()


def test_files_of_the_other_half_need_not_be_there(tmp_path: Path) -> None:
    folder = build(tmp_path / "model", TINY, 1)
    whole = ModelJob(model=str(folder)).load("vision")
    (folder / "model-language.safetensors").unlink()
    half = ModelJob(model=str(folder), offload=True).load("vision")
    processor = ModelJob(model=str(folder)).processor()
    rows = [[prepare(processor, clip) for clip in clips("video", 2)]]
    (found,), (wanted,) = encode_batches(half, rows), encode_batches(whole, rows)
    assert [pack_tree(r.to_tree()) for r in found] == [pack_tree(r.to_tree()) for r in wanted]


def test_weights_that_were_arranged_anew_go_with_their_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], **CAUGHT)
    for owner in (dead.stdout.strip(), str(os.getppid())):
        (tmp_path / "temporary" / f"penstock-layers-{owner}-left").mkdir(parents=True)
    model, inputs = FAMILIES["kimi_k25"]()
    model.save_pretrained(tmp_path / "model")
    half = ModelJob(model=str(tmp_path / "model"), offload=True).load("vision")
    cross(half, [partial(encode, half, inputs)])
    here = [path.name for path in (tmp_path / "temporary").iterdir()]
    mine = f"penstock-layers-{os.getpid()}-"
    assert sorted(name.startswith(mine) for name in here) == [False, True]
    del half
    gc.collect()
    (left,) = (tmp_path / "temporary").iterdir()
    assert left.name == f"penstock-layers-{os.getppid()}-left"


@pytest.fixture(scope="module")
def tall(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, str]]]:
    """A tower of 12 layers of 21 MB, and clips."""
    folder = tmp_path_factory.mktemp("tall")
    shape = Shape(layers=1, width=128, tower_layers=12, tower_width=640, vocabulary=512)
    build(folder / "model", shape, 1)
    return folder, publish_clips(str(folder / "store"), [16] * 8)


@pytest.mark.slow
@pytest.mark.parametrize("block", [0, 8])
def test_a_tower_larger_than_the_budget_is_streamed_within_it(
    block: int, tall: tuple[Path, list[dict[str, str]]]
) -> None:
    folder, members = tall
    namespace = digest_of(["namespace", block])
    chunks = [{**m, "key": digest_of([namespace, m["frames"]])} for m in members]
    job = {
        "store": str(folder / "store"),
        "model": str(folder / "model"),
        "dtype": "float32",
        "frames_namespace": FRAMES,
        "namespace": namespace,
        "batches": [chunks[at : at + 2] for at in range(0, len(chunks), 2)],
        "offload": block > 0,
        "block": block,
    }
    process = StageProcess(
        "encode",
        "stages.encode.run:run",
        job,
        device="cpu",
        log=folder / "encode.log",
        listen=lambda stage, event: None,
        budget=160 << 20,
    )
    if not block:
        with pytest.raises(OutOfMemory):
            process.wait()
        return
    outcome = process.wait()
    assert outcome.items == len(members)
    tower = json.loads((folder / "model" / "model.safetensors.index.json").read_text())
    assert tower["metadata"]["total_size"] * 2 > 240 << 20, "as it is in 32 bit"
    assert outcome.peak_host_bytes - outcome.notes["loaded_bytes"] < 160 << 20


@pytest.mark.gpu
@pytest.mark.parametrize("family", BUILDERS)
def test_on_a_gpu_features_are_those_of_a_resident_half(family: str) -> None:
    job: dict[str, Any] = {"model": str(checkpoint(family)), "device": "cuda:0"}
    processor = ModelJob(**job).processor()
    rows = [[prepare(processor, clip) for clip in clips("video", 2)] for _ in range(4)]
    wanted = encode_batches(ModelJob(**job).load("vision"), rows)
    half = ModelJob(**job, offload=True).load("vision")
    for _ in range(2):  # the second time the order of the layers is known
        found = encode_batches(half, rows)
        for some, others in zip(found, wanted, strict=True):
            assert [pack_tree(r.to_tree()) for r in some] == [
                pack_tree(r.to_tree()) for r in others
            ]
    assert torch.cuda.memory_allocated() > 0


def test_a_checkpoint_of_one_file_is_never_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A map of all of it, to look at names, would count against the limit."""
    from transformers import modeling_utils
    from transformers.integrations import accelerate

    def mapped(*_: Any, **__: Any) -> Any:
        pytest.fail("the file was mapped")

    folder = checkpoint("llava")
    assert [path.name for path in folder.glob("*.safetensors*")] == ["model.safetensors"]
    for library in (modeling_utils, accelerate):
        monkeypatch.setattr(library, "safe_open", mapped)
    half = ModelJob(model=str(folder), dtype="float32", offload=True).hold("vision").model
    assert layers_of(half).count
