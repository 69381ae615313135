"""`penstock embed`: vectors of pictures and of videos' frames, by the vision half of a dual encoder
alone; rebuilt, planned, shown, past a budget; and in fp16 on a GPU where a trial shows it near."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from artifacts.errors import HalfChecked
from artifacts.records.packs import RecordSet, stored_namespaces
from artifacts.records.store import open_store
from flows.core.job import prepare
from flows.core.job.prepare import prepare_without_media, with_vector_precision
from flows.core.ledger.namespaces import Variant
from flows.core.options.vectors import EmbedConfig
from flows.core.pipelines import EMBED
from flows.interfaces.cli.main import main
from penstock_demo import CHECKPOINT
from stages.embed import EmbedJob, run
from stages.embed.run import run as embed_stage
from stages.models.encoding import EncodeItem
from stages.models.half_job import HalfJob
from stages.process import checks
from stages.process.checks import KIND
from stages.process.job import job_fields
from tests.support import gpus
from tests.support.builders.clip import save_clip
from tests.support.builders.words import hf
from tests.support.commands import completed
from tests.support.described import spare_processes
from tests.support.dual_encoders import names, save
from tests.support.embedding import embed, items, rows, vectors, write_images
from tests.support.inside import InsideLauncher
from tests.support.pipeline import PENSTOCK, ROOT, SECONDS, Place
from tests.support.refusals import one_line

Patch = pytest.MonkeyPatch
OTHERS = ("align", "altclip", "blip", "chinese_clip", "clipseg", "siglip", "siglip2")


@pytest.fixture(scope="module", autouse=True)
def stages_in_this_process() -> Iterator[None]:
    """None of these tests is about processes."""
    with pytest.MonkeyPatch.context() as patch:
        spare_processes(patch)
        yield


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("pictures"))


def processed(model: Path, pictures: Path, **more: Any) -> Any:
    """What the model's own processor makes of the pictures, in the order of their names."""
    processor: Any = hf.AutoProcessor.from_pretrained(model)
    images = [Image.open(path) for path in sorted(pictures.iterdir())]
    return processor(images=images, return_tensors="pt", **more)


def image_features(kind: Any, model: Path, pictures: Path) -> Any:
    """The vectors by the whole model, which computes all images at once."""
    with torch.inference_mode():
        whole = kind.from_pretrained(model).eval()
        return whole.get_image_features(**processed(model, pictures)).pooler_output.numpy()


def test_pictures_get_the_vectors_of_the_whole_model(
    pictures: Path, clip: Path, tmp_path: Path, in_batches: None
) -> None:
    assert embed(pictures, clip, tmp_path) == 0
    place = Place(clips=pictures, out=tmp_path / "out", store=tmp_path / "store")
    assert place.stored("frames") == {}, "what is read is given back"
    found = sorted(path.name for path in pictures.iterdir())
    assert [row["media_path"] for row in rows(tmp_path)] == found
    assert all(row["time"] is None and row["box"] is None for row in rows(tmp_path))
    assert np.array_equal(vectors(tmp_path), image_features(hf.CLIPModel, clip, pictures))
    assert items(tmp_path) == {"frames": 6, "embed": 6}


@pytest.mark.slow
def test_in_a_small_store_pictures_come_in_waves_and_vectors_stay_until_they_are_written(
    pictures: Path, clip: Path, tmp_path: Path
) -> None:
    assert embed(pictures, clip, tmp_path / "large") == 0
    assert embed(pictures, clip, tmp_path / "none", "--max-store", "40kB") == 3
    assert embed(pictures, clip, tmp_path / "one", "--max-store", "60kB") == 1
    assert len(vectors(tmp_path / "one")) == 1
    assert embed(pictures, clip, tmp_path / "small", "--max-store", "130kB") == 0
    place = Place(clips=pictures, out=tmp_path / "small/out", store=tmp_path / "small/store")
    assert place.stages()["embed"]["processes"] > 2
    assert np.array_equal(vectors(tmp_path / "small"), vectors(tmp_path / "large"))


@pytest.mark.slow
def test_other_squares_are_other_records_of_pictures_stored_whole(
    clip: Path, tmp_path: Path
) -> None:
    def namespaces(tiles: str) -> Variant:
        store = str(tmp_path / "store")
        config = EmbedConfig(sources=(), model=str(clip), out="out", store=store, tiles=tiles)
        return prepare_without_media(config, InsideLauncher(), EMBED).ledger.variant

    whole, halves, thirds = map(namespaces, ("off", "2", "3"))
    assert whole["frames"] != halves["frames"] == thirds["frames"]
    assert len({each["embeddings"] for each in (whole, halves, thirds)}) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_other_classes_give_the_vectors_of_their_own_processor_and_model(
    name: str, pictures: Path, tmp_path: Path, in_batches: None
) -> None:
    model = save(name, tmp_path / "model")
    assert embed(pictures, model, tmp_path) == 0
    expected = image_features(getattr(hf, names()[name]), model, pictures)
    assert np.array_equal(vectors(tmp_path), expected)


def test_the_code_of_the_page_gives_the_logits_of_the_whole_model(
    pictures: Path, clip: Path
) -> None:
    page = (ROOT / "docs" / "embed.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    processor: Any = hf.AutoProcessor.from_pretrained(clip)
    images = [Image.open(path) for path in sorted(pictures.iterdir())]
    labels = ["a cat", "a much longer label"]
    names = {"folder": clip, "processor": processor, "images": images, "labels": labels}
    exec(code, names)  # as it is printed
    with torch.inference_mode():
        whole = hf.CLIPModel.from_pretrained(clip).eval()
        logits = whole(**processed(clip, pictures, text=labels, padding=True)).logits_per_image
    assert torch.equal(names["scores"], logits)


@pytest.mark.slow
def test_a_model_of_another_kind_is_refused_with_what_to_do(
    pictures: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert embed(pictures, CHECKPOINT, tmp_path) == 2
    printed = one_line(capsys.readouterr().err)
    assert "writes captions" in printed and "penstock caption" in printed
    where = ["--store", str(tmp_path / "store"), "--out", str(tmp_path / "out")]
    assert main(["caption", str(pictures), "--model", str(clip), *where]) == 2
    printed = one_line(capsys.readouterr().err)
    assert "writes no captions" in printed and "penstock embed" in printed
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    assert embed(pictures, tmp_path / "model", tmp_path) == 2
    assert "no vision half" in capsys.readouterr().err


@pytest.mark.slow
def test_a_plan_is_of_what_the_model_makes(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = ["plan", "--model", str(clip), "--store", str(tmp_path), "--json"]
    for more in ([], ["--for", "embed"]):
        assert main([*plan, *more]) == 0
        printed = json.loads(capsys.readouterr().out)
        assert [stage["stage"] for stage in printed["memory"]["stages"]] == ["frames", "embed"]
        assert list(printed["halves"]) == ["vision"] and printed["route"] == "dual"


def embed_on_gpu(sources: Path, model: Path, place: Path, *more: str) -> str:
    """Run the command on a machine with a GPU, and return what it prints."""
    place.mkdir(exist_ok=True)
    cards = gpus.environment(gpus.plain().write(place / "gpu"))
    where = ["--out", str(place / "out"), "--store", str(place / "store")]
    command = [*PENSTOCK, "embed", str(sources), "--model", str(model), *where, *more]
    done = completed(command, env=cards, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def run_of(place: Path) -> Any:
    return json.loads((place / "out" / "run.json").read_text())


def verdicts(place: Path) -> list[dict[str, Any]]:
    store = open_store(str(place / "store"))
    found = [RecordSet(store, KIND, name) for name in stored_namespaces(store, KIND)]
    stored = [records.meta(key) for records in found for key in sorted(records.keys())]
    return [verdict["outcome"] for verdict in stored if verdict["check"][0] == "fp16"]


def dtype_of(place: Path) -> str:
    (stage,) = (s for s in run_of(place)["stages"] if s["name"] == "embed")
    return str(stage["notes"]["dtype"])


@pytest.mark.slow
def test_auto_takes_fp16_after_one_trial_and_native_stays(
    pictures: Path, clip: Path, tmp_path: Path
) -> None:
    text = embed_on_gpu(pictures, clip, tmp_path, "--precision", "auto")
    assert "the vision half runs in fp16 (cosine of fp16 to fp32 at least" in text
    assert dtype_of(tmp_path) == "torch.float16"
    (verdict,) = verdicts(tmp_path)
    assert verdict["holds"] and verdict["images"] == 6
    narrow = np.array(vectors(tmp_path))
    again = embed_on_gpu(pictures, clip, tmp_path, "--precision", "auto")
    assert "cosine" not in again
    assert [stage["items"] for stage in run_of(tmp_path)["stages"]] == [0, 0]
    embed_on_gpu(pictures, clip, tmp_path, "--precision", "native")
    assert dtype_of(tmp_path) == "torch.float32"
    wide = np.array(vectors(tmp_path))
    assert not np.array_equal(wide, narrow) and np.allclose(wide, narrow, atol=1e-2)
    assert verdicts(tmp_path) == [verdict]


@pytest.mark.slow
def test_auto_stays_in_fp32_where_such_vectors_are_stored(
    pictures: Path, clip: Path, tmp_path: Path
) -> None:
    embed_on_gpu(pictures, clip, tmp_path)
    text = embed_on_gpu(pictures, clip, tmp_path, "--precision", "auto", "--batch-size", "2")
    assert "the vision half runs in fp32 (the store has vectors of it in fp32" in text
    assert verdicts(tmp_path) == []


@pytest.fixture(scope="module")
def on_a_cpu(pictures: Path, clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("cpu")
    assert embed(pictures, clip, place, "--precision", "auto", "--keep-frames") == 0
    return place


@pytest.mark.slow
def test_auto_tries_nothing_on_a_cpu(on_a_cpu: Path) -> None:
    assert dtype_of(on_a_cpu) == "torch.float32" and verdicts(on_a_cpu) == []


@pytest.mark.parametrize(
    ("stored", "taken"), [({"fp16"}, "fp16"), ({"fp32"}, "fp32"), ({"fp16", "fp32"}, "fp16")]
)
def test_without_a_verdict_the_vectors_in_the_store_decide(
    clip: Path, tmp_path: Path, stored: set[str], taken: str, monkeypatch: Patch
) -> None:
    where: dict[str, Any] = {"model": str(clip), "store": str(tmp_path)}
    config = EmbedConfig(sources=(), precision="auto", **where)
    model = prepare_without_media(config, InsideLauncher(), EMBED).model
    monkeypatch.setattr(
        prepare, "_has_vectors", lambda store, model, settings: settings.precision in stored
    )
    model = with_vector_precision(config, model, open_store(str(tmp_path)), "cuda:0")
    assert (model.best("vision").precision, model.fp16_check) == (taken, "")


@pytest.mark.parametrize(("least", "taken"), [(0.9999, "fp16"), (1.1, "fp32")])
def test_a_trial_stores_its_result_which_decides_for_this_kind_of_card(
    clip: Path, on_a_cpu: Path, tmp_path: Path, least: float, taken: str, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(run, "MIN_COSINE", least)
    monkeypatch.setattr(checks, "conditions", lambda device: {})
    store, shown = open_store(str(tmp_path)), open_store(str(on_a_cpu / "store"))
    where: dict[str, Any] = {"model": str(clip), "store": str(tmp_path)}
    config = EmbedConfig(sources=(), precision="auto", **where)
    model = prepare_without_media(config, InsideLauncher(), EMBED).model
    assert model.fp16_check == "", "this machine has no GPU"
    tried = with_vector_precision(config, model, store, "cuda:0")
    assert tried.fp16_check and tried.best("vision").precision == "fp32"
    (namespace,) = stored_namespaces(shown, "frames")
    frames = sorted(RecordSet(shown, "frames", namespace).keys())
    job = EmbedJob(
        half=HalfJob(model=str(clip), dtype="float32", route="dual"),
        store=str(tmp_path),
        frames_store=shown.url,
        frames_namespace=namespace,
        namespace="made",
        batches=[[EncodeItem(f"{at:064x}", key, "image") for at, key in enumerate(frames)]],
        fp16_check=tried.fp16_check,
    )
    with pytest.raises(HalfChecked, match=f"runs in {taken} .* on 6 images"):
        embed_stage(job_fields(job), cast(Any, None))
    assert stored_namespaces(store, "embeddings") == set(), "a trial makes no vectors"
    known = with_vector_precision(config, model, store, "cuda:0")
    assert (known.best("vision").precision, known.fp16_check) == (taken, "")
    assert [s.precision for s in known.settings["vision"][1:]] == ["int8", "nf4"]
    noted = [note for note in known.notes if "runs in fp32" in note]
    assert noted == (list(known.notes) if taken == "fp32" else [])
    native = replace(config, precision="native")
    assert with_vector_precision(native, model, store, "cuda:0") == model
    assert with_vector_precision(config, model, store, "cpu") == model
