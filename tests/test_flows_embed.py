"""`penstock embed`: vectors of pictures and of videos' frames, by the vision half of a dual encoder
alone; killed, rebuilt, planned, shown, and past a budget."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flows.cli.main import main
from flows.job.prepare import prepare_without_media
from flows.ledger.namespaces import Variant
from flows.options.vectors import EmbedConfig
from flows.pipelines import EMBED
from penstock_demo import CHECKPOINT
from tests.support.dual_encoders import names, save, save_clip
from tests.support.embedding import SIZES, embed, items, rows, vectors, write_images
from tests.support.families import hf
from tests.support.inside import InsideLauncher
from tests.support.pipeline import ROOT, Place, kill_at
from tests.support.refusals import one_line

OTHERS = ("align", "altclip", "blip", "chinese_clip", "clipseg", "siglip", "siglip2")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("pictures"))


def test_pictures_get_the_vectors_of_the_whole_model(
    pictures: Path, clip: Path, tmp_path: Path
) -> None:
    assert embed(pictures, clip, tmp_path, "--encode-way", "batches") == 0
    place = Place(clips=pictures, out=tmp_path / "out", store=tmp_path / "store")
    assert place.stored("frames") == {}, "what is read is given back"
    found = sorted(path.name for path in pictures.iterdir())
    assert [row["media_path"] for row in rows(tmp_path)] == found
    assert all(row["time"] is None and row["box"] is None for row in rows(tmp_path))
    processor: Any = hf.AutoProcessor.from_pretrained(clip)
    images = [Image.open(pictures / name) for name in found]
    with torch.inference_mode():
        whole = hf.CLIPModel.from_pretrained(clip).eval()
        wanted = whole.get_image_features(**processor(images=images, return_tensors="pt"))
    assert np.array_equal(vectors(tmp_path), wanted.pooler_output.numpy())
    assert items(tmp_path) == {"frames": 6, "embed": 6}


@pytest.mark.slow
def test_threads_that_prepare_change_no_vector(pictures: Path, clip: Path, tmp_path: Path) -> None:
    for count in ("1", "3"):
        place = tmp_path / count
        assert embed(pictures, clip, place, "--prepare-workers", count, "--batch-size", "2") == 0
    assert np.array_equal(vectors(tmp_path / "1"), vectors(tmp_path / "3"))
    assert items(tmp_path / "3") == {"frames": 6, "embed": 6}


def test_other_squares_are_other_records_of_pictures_stored_whole(
    clip: Path, tmp_path: Path
) -> None:
    def namespaces(tiles: str) -> Variant:
        store = str(tmp_path / "store")
        config = EmbedConfig(sources=(), model=str(clip), out="out", store=store, tiles=tiles)
        return prepare_without_media(config, InsideLauncher(), EMBED).ledger.namespaces

    whole, halves, thirds = map(namespaces, ("off", "2", "3"))
    assert whole["frames"] != halves["frames"] == thirds["frames"]
    assert len({each["embeddings"] for each in (whole, halves, thirds)}) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_other_classes_give_the_vectors_of_their_own_processor_and_model(
    name: str, pictures: Path, tmp_path: Path
) -> None:
    model = save(name, tmp_path / "model")
    # The whole model computes all images at once.
    assert embed(pictures, model, tmp_path, "--encode-way", "batches") == 0
    processor: Any = hf.AutoProcessor.from_pretrained(model)
    images = [Image.open(path) for path in sorted(pictures.iterdir())]
    whole: Any = getattr(hf, names()[name]).from_pretrained(model).eval()
    with torch.inference_mode():
        wanted = whole.get_image_features(**processor(images=images, return_tensors="pt"))
    assert np.array_equal(vectors(tmp_path), wanted.pooler_output.numpy())


def test_the_code_of_the_page_gives_the_logits_of_the_whole_model(
    pictures: Path, clip: Path
) -> None:
    page = (ROOT / "docs" / "embed.md").read_text()
    code = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(code) == 1
    processor: Any = hf.AutoProcessor.from_pretrained(clip)
    images = [Image.open(path) for path in sorted(pictures.iterdir())]
    labels = ["a cat", "a much longer label"]
    names = {"folder": clip, "processor": processor, "images": images, "labels": labels}
    exec(code[0], names)  # as it is printed
    inputs = processor(images=images, text=labels, padding=True, return_tensors="pt")
    with torch.inference_mode():
        whole = hf.CLIPModel.from_pretrained(clip).eval()(**inputs)
    assert torch.equal(names["scores"], whole.logits_per_image)


@pytest.mark.slow
def test_a_model_of_another_kind_is_refused_with_what_to_do(
    pictures: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert embed(pictures, CHECKPOINT, tmp_path) == 2
    said = one_line(capsys.readouterr().err)
    assert "writes captions" in said and "penstock caption" in said
    where = ["--store", str(tmp_path / "store"), "--out", str(tmp_path / "out")]
    assert main(["caption", str(pictures), "--model", str(clip), *where]) == 2
    said = one_line(capsys.readouterr().err)
    assert "writes no captions" in said and "penstock embed" in said
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    assert embed(pictures, tmp_path / "model", tmp_path) == 2
    assert "no vision half" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_run_goes_on_and_makes_the_same_bytes(
    pictures: Path, clip: Path, tmp_path: Path
) -> None:
    embed(pictures, clip, tmp_path / "whole", "--batch-size", "2")
    place = Place(
        clips=pictures,
        out=tmp_path / "out",
        store=tmp_path / "store",
        model=str(clip),
        verb="embed",
    )
    assert kill_at(place, "embed", 2, "group", "--batch-size", "2") != 0
    assert place.run("--batch-size", "2").returncode == 0
    # What was stored when the kill came need not have been told.
    assert set(place.journal("embed").values()) == {1}, "none is made twice"
    assert len(place.stored("embeddings")) == len(SIZES)
    wanted = (tmp_path / "whole" / "out" / "embeddings.npy").read_bytes()
    assert (tmp_path / "out" / "embeddings.npy").read_bytes() == wanted


def test_a_damaged_vector_is_computed_again(pictures: Path, clip: Path, tmp_path: Path) -> None:
    assert embed(pictures, clip, tmp_path) == 0
    before = vectors(tmp_path)
    pack, *_ = (tmp_path / "store" / "embeddings").rglob("*.pack")
    pack.chmod(0o600)
    pack.write_bytes(pack.read_bytes()[:-1] + b"!")
    assert embed(pictures, clip, tmp_path) == 0
    assert np.array_equal(vectors(tmp_path), before)
    assert [*(tmp_path / "store" / "quarantine").iterdir()]


@pytest.mark.slow
def test_a_rebuild_makes_what_embed_finds_and_status_and_report_tell_of_it(
    pictures: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = ["--store", str(tmp_path / "store")]
    rebuild = ["cache", "rebuild", str(pictures), "--model", str(clip), *store]
    assert main([*rebuild, "--batch-size", "32"]) == 0
    assert "encoded 6 chunks" in capsys.readouterr().out
    assert embed(pictures, clip, tmp_path) == 0
    assert items(tmp_path) == {"frames": 0, "embed": 0} and len(vectors(tmp_path)) == 6
    capsys.readouterr()
    assert main(["cache", "ls", *store]) == 0
    assert re.search(r"embeddings +fp32", capsys.readouterr().out)
    assert main(["cache", "gc", "--max", "1B", *store]) in (0, 1)
    assert "embeddings" in capsys.readouterr().out
    assert embed(pictures, clip, tmp_path) == 0
    assert items(tmp_path) == {"frames": 6, "embed": 6}
    capsys.readouterr()
    assert main(["status", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "6 embeddings written" in said and re.search(r"\nembed +6 +0 +0 ", said)
    assert "language half" not in said and "embeddings.npy" in said
    assert main(["report", str(tmp_path / "out")]) == 0
    assert "embeddings" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.slow
def test_a_plan_is_of_what_the_model_makes(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = ["plan", "--model", str(clip), "--store", str(tmp_path), "--json"]
    for more in ([], ["--for", "embed"]):
        assert main([*plan, *more]) == 0
        told = json.loads(capsys.readouterr().out)
        assert [stage["stage"] for stage in told["memory"]["stages"]] == ["frames", "embed"]
        assert list(told["halves"]) == ["vision"] and told["route"] == "dual"


@pytest.mark.slow
def test_what_is_larger_than_the_budget_is_streamed_to_the_same_bytes(
    pictures: Path, tmp_path: Path
) -> None:
    model = save_clip(
        tmp_path / "wide",
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=8,
        num_attention_heads=12,
        image_size=64,
    )
    assert (model / "model.safetensors").stat().st_size > 200 << 20, "of one file, too"
    assert embed(pictures, model, tmp_path / "held", "--batch-size", "4") == 0
    assert embed(pictures, model, tmp_path / "past", "--batch-size", "4", "--memory", "160MiB") == 0
    record = json.loads((tmp_path / "past" / "out" / "run.json").read_text())
    assert record["rungs"][-1]["rung"]["block"] > 0
    assert np.array_equal(vectors(tmp_path / "held"), vectors(tmp_path / "past"))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "nf4"])
def test_another_precision_is_another_record_of_like_vectors(
    precision: str, pictures: Path, clip: Path, tmp_path: Path
) -> None:
    embed(pictures, clip, tmp_path)
    plain = np.array(vectors(tmp_path))
    assert embed(pictures, clip, tmp_path, "--precision", precision) == 0
    assert items(tmp_path)["embed"] == 6
    assert {row["precision"] for row in rows(tmp_path)} == {precision}
    other = vectors(tmp_path)
    norms = np.linalg.norm(plain, axis=1) * np.linalg.norm(other, axis=1)
    assert ((plain * other).sum(axis=1) / norms > 0.95).all()
