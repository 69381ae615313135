"""A half whose layers come one after the other, or wait outside the device, gives to the bit what
it gives with all of them there."""

import fcntl
import gc
import json
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from artifacts.digests import digest_of
from artifacts.errors import CannotFit, EnvironmentFault, OutOfMemory, UsageError
from artifacts.records.tensors import pack_tree
from stages.models.encoding import EncodeItem
from stages.models.encoding.batch import encode_batches
from stages.models.halves.features import encode
from stages.models.halves.generate import generate, offloaded_bytes
from stages.models.halves.records import FeatureRecord
from stages.models.halves.split_route import choose_route
from stages.models.loading import ModelJob, facts
from stages.models.processors.prepare import prepare
from stages.models.processors.side_inputs import Prepared
from stages.models.streaming.load import StreamedLayers, run_calls, streamed_layers
from stages.process.stage_process import ProcessSettings, StageProcess
from tests.support.builders.jobs import made_job
from tests.support.builders.models import FRAMES, TINY, Shape, build, publish_clips
from tests.support.clips import PROMPTS, clips
from tests.support.families import BUILDERS, checkpoint
from tests.support.peaks import peaks_of
from tests.support.tiny_families import FAMILIES
from tests.support.waves import FEATURES, OTHER, Wave, captions_of

PLAIN = [name for name in FAMILIES if ":" not in name]
WITHOUT_LAYERS = {"chameleon", "fuyu", "gemma4_unified"}
"""Of tiny families: those that see with a linear layer alone, or in one block a stage."""
QUICK = {"florence2", "qwen2_5_vl", "qwen3_vl_moe"}
"""One that encodes its prompt, a decoder alone, and one whose weights are arranged anew."""
ALL = 256


def layers_of(half: Any) -> StreamedLayers:
    found = streamed_layers(half)
    assert found is not None
    return found


def payloads(wave: Wave) -> list[bytes]:
    record_set, count = wave.record_set("features", FEATURES), sum(map(len, wave.batches))
    found = [bytes(record_set.read(f"features-{n}").payload) for n in range(count)]
    record_set.drop([f"features-{n}" for n in range(count)])
    return found


def rows_of(folder: Path, count: int = 1) -> list[list[Prepared]]:
    """Rows of two clips each."""
    processor = ModelJob(model=str(folder)).processor()
    return [[prepare(processor, clip) for clip in clips("video", 2)] for _ in range(count)]


def packed(rows: list[list[FeatureRecord]]) -> list[list[Any]]:
    return [[pack_tree(record.to_tree()) for record in row] for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "dtype"),
    [("qwen2_5_vl", "bfloat16"), ("llava", "float32"), ("llava_onevision", "bfloat16")],
)
def test_features_are_those_of_a_resident_half(family: str, dtype: str, tmp_path: Path) -> None:
    video, images = clips("video", 5), clips("image", 2)
    batches = [video[:2], images, video[2:4], video[4:]]
    wave = Wave(tmp_path / "store", checkpoint(family), batches, dtype=dtype)
    wave.encode()
    resident = payloads(wave)
    for block in (ALL, 3, 1):
        wave.settings |= {"offload": True, "block": block}
        message = wave.encode()
        assert payloads(wave) == resident
        assert next(note["bytes_fetched_a_pass"] for note in message if "ready" in note) > 0


def test_layers_come_once_for_a_whole_block() -> None:
    half = ModelJob(model=str(checkpoint("llava")), offload=True).load("vision")
    encode_batches(half, rows_of(checkpoint("llava"), 6))
    layers = layers_of(half)
    assert len(layers.layers) == 3
    assert layers.buffers.fetched <= len(layers.layers) + 1  # and the first again, for who follows


@pytest.mark.slow
@pytest.mark.parametrize("variant", PLAIN)
def test_every_family_can_be_streamed(variant: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs = FAMILIES[variant]()
    model.save_pretrained(tmp_path)
    if choose_route(model).route == "joint":
        return
    if variant in WITHOUT_LAYERS:
        with pytest.raises(CannotFit, match="no layers"):
            ModelJob(model=str(tmp_path), offload=True).load("vision")
        return
    whole = ModelJob(model=str(tmp_path)).load_reloadable("vision")
    expected = whole.call(lambda half: encode(half, inputs))
    held = ModelJob(model=str(tmp_path), offload=True).load_reloadable("vision")
    for found in held.call(lambda half: run_calls(half, [partial(encode, half, inputs)] * 3)):
        assert pack_tree(dict(found)) == pack_tree(dict(expected))


def test_weights_stored_in_another_type_are_cast_as_they_come() -> None:
    rows = rows_of(checkpoint("qwen2_5_vl"))
    for dtype in ("bfloat16", "float16", "float32"):
        job: dict[str, Any] = {"model": str(checkpoint("qwen2_5_vl")), "dtype": dtype}
        whole = encode_batches(ModelJob(**job).load("vision"), rows)
        half = ModelJob(**job, offload=True).load("vision")
        assert packed(encode_batches(half, rows)) == packed(whole)
    weights = sum(
        t.shape.numel() * t.dtype.itemsize for x in layers_of(half).layers for t in x.tensors
    )
    assert weights == facts(half)["bytes_fetched_a_pass"]


def test_layers_come_from_the_file_and_one_that_ends_too_soon_is_named(tmp_path: Path) -> None:
    model, inputs = FAMILIES["llava"]()
    model.save_pretrained(tmp_path)
    half = ModelJob(model=str(tmp_path), offload=True).load("vision")
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    name = next(n for n in weights if "layers.1." in n and "vision" in n and n.endswith("weight"))
    weights[name].fill_(float("nan"))
    save_file(weights, file, metadata={"format": "pt"})
    (found,) = run_calls(half, [partial(encode, half, inputs)])
    assert found["image"]["pooler_output"][0].isnan().any()
    os.truncate(file, file.stat().st_size // 4)
    with pytest.raises(EnvironmentFault, match=r"model\.safetensors is not a whole"):
        run_calls(half, [partial(encode, half, inputs)])


def test_files_of_the_other_half_need_not_be_there(tmp_path: Path) -> None:
    folder = build(tmp_path / "model", TINY, 1)
    whole = ModelJob(model=str(folder)).load("vision")
    (folder / "model-language.safetensors").unlink()
    half = ModelJob(model=str(folder), offload=True).load("vision")
    rows = rows_of(folder)
    assert packed(encode_batches(half, rows)) == packed(encode_batches(whole, rows))


def test_weights_that_were_arranged_anew_go_with_their_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    for owner in ("dead", "living"):  # the living one has a lock; its id may be of a container
        (tmp_path / "temporary" / f"penstock-layers-{owner}").mkdir(parents=True)
    lock = os.open(tmp_path / "temporary" / "penstock-layers-living", os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    model, inputs = FAMILIES["kimi_k25"]()
    model.save_pretrained(tmp_path / "model")
    half = ModelJob(model=str(tmp_path / "model"), offload=True).load("vision")
    run_calls(half, [partial(encode, half, inputs)])
    here = {path.name for path in (tmp_path / "temporary").glob("penstock-*")}
    assert len(here) == 2 and "penstock-layers-living" in here
    del half
    gc.collect()
    (left,) = (tmp_path / "temporary").glob("penstock-*")
    assert left.name == "penstock-layers-living"
    os.close(lock)


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
    chunks = [
        EncodeItem(digest_of([namespace, m["frames"]]), m["frames"], m["kind"]) for m in members
    ]
    job = {
        "store": str(folder / "store"),
        "half": {"model": str(folder / "model"), "dtype": "float32", "offload": block > 0},
        "frames_namespace": FRAMES,
        "namespace": namespace,
        "batches": [chunks[at : at + 2] for at in range(0, len(chunks), 2)],
        "block": block,
    }
    settings = ProcessSettings(
        name="encode",
        job=made_job(**job),
        device="cpu",
        log=folder / "encode.log",
        budget=160 << 20,
    )
    process = StageProcess(settings, "stages.encode.run:run", lambda stage, event: None)
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
    rows = rows_of(checkpoint(family), 4)
    expected = packed(encode_batches(ModelJob(**job).load("vision"), rows))
    half = ModelJob(**job, offload=True).load("vision")
    for _ in range(2):  # the second time the order of the layers is known
        assert packed(encode_batches(half, rows)) == expected
    assert torch.cuda.memory_allocated() > 0


def test_a_checkpoint_of_one_file_is_never_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import modeling_utils
    from transformers.integrations import accelerate

    def mapped(*_: Any, **__: Any) -> Any:
        pytest.fail("the file was mapped")

    folder = checkpoint("llava")
    assert [path.name for path in folder.glob("*.safetensors*")] == ["model.safetensors"]
    for library in (modeling_utils, accelerate):
        monkeypatch.setattr(library, "safe_open", mapped)
    job = ModelJob(model=str(folder), dtype="float32", offload=True)
    assert layers_of(job.load_reloadable("vision").model).layers


def test_only_layers_wait_and_their_bytes_are_told() -> None:
    job = ModelJob(model=str(checkpoint("qwen2_5_vl")), offload=True)
    half: Any = job.load("language")
    layers = sum(w.nbytes for w in half.model.language_model.layers.parameters())
    assert offloaded_bytes(half) == layers == facts(half)["bytes_fetched_a_pass"]
    assert half.device == torch.device("cpu")
    resident = ModelJob(model=job.model).load("language")
    assert facts(resident)["bytes_fetched_a_pass"] == 0


def test_each_pass_of_a_language_half_reads_each_layer_into_one_buffer() -> None:
    half = ModelJob(model=str(checkpoint("qwen2_5_vl")), offload=True).load("language")
    layers, ids = layers_of(half), torch.tensor([[5, 6, 7]])
    for _ in range(3):
        half(input_ids=ids)
    assert len(layers.layers) > 1 and layers.buffers.fetched == 3 * len(layers.layers)
    assert all(weight.is_meta for layer in layers.layers for weight in layer.module.parameters())


@pytest.mark.in_turn
@pytest.mark.parametrize(
    "variant",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in PLAIN],
)
def test_every_family_says_the_same_layer_by_layer(variant: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs = FAMILIES[variant]()
    model.save_pretrained(tmp_path)
    if choose_route(model).route == "joint":
        return
    vision = ModelJob(model=str(tmp_path)).load_reloadable("vision")
    features = vision.call(partial(encode, inputs=inputs))
    options: dict[str, Any] = {"do_sample": False, "num_beams": 1}
    options |= {"min_new_tokens": 3, "max_new_tokens": 3}

    def tokens(half: Any) -> list[list[int]]:
        return generate(half, inputs, features, **options).tolist()

    jobs = (ModelJob(model=str(tmp_path), offload=offload) for offload in (False, True))
    resident, in_turn = (job.load_reloadable("language").call(tokens) for job in jobs)
    assert in_turn == resident


@pytest.mark.slow
def test_an_offloaded_half_never_holds_its_weights(tmp_path: Path) -> None:
    shape = Shape(layers=8, width=512, tower_layers=1, tower_width=64, vocabulary=512)
    large = build(tmp_path / "model", shape, 3)
    resident = peaks_of(large, dtype="bfloat16", positions=8)
    waiting = peaks_of(large, dtype="bfloat16", positions=8, offload=True)
    assert waiting["tokens"] == resident["tokens"]
    assert waiting["running"] < resident["weights"] / 2 < resident["running"]


def test_offloaded_layers_read_long_prompts_in_pieces(tmp_path: Path) -> None:
    wave = Wave(tmp_path / "store", checkpoint("qwen2_5_vl"), [clips("video", 2)])
    wave.encode()
    wave.decode(PROMPTS)
    wave.settings |= {"offload": True, "prefill": 3}
    message = wave.decode(PROMPTS, OTHER)
    assert captions_of(wave.captions(OTHER)) == captions_of(wave.captions())
    assert [note["prefill_way"] for note in message if "prefill_way" in note] == ["mlp"]


def test_a_half_in_few_bits_cannot_be_offloaded() -> None:
    job = ModelJob(model=str(checkpoint("llava")), precision="int8", offload=True)
    with pytest.raises(UsageError, match="offloaded"):
        job.load("language")


def test_what_has_no_layers_fails(tmp_path: Path) -> None:
    FAMILIES["fuyu"]()[0].save_pretrained(tmp_path)
    with pytest.raises(CannotFit, match="no layers"):
        ModelJob(model=str(tmp_path), offload=True).load("vision")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_quantizing_never_holds_the_half_as_it_was(precision: str, tmp_path: Path) -> None:
    shape = Shape(layers=20, width=1024, tower_layers=1, tower_width=64, vocabulary=512)
    folder = build(tmp_path / "model", shape, 3)
    sixteen = peaks_of(folder, dtype="bfloat16", positions=8)
    few = peaks_of(folder, dtype="bfloat16", precision=precision, positions=8)
    assert few["loading"] < few["weights"] + sixteen["weights"] / 2
    assert sixteen["loading"] < sixteen["weights"] * 1.15
