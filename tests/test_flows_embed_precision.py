"""On a GPU, `auto` takes fp16 for a dual encoder published in fp32 if its vectors are near enough,
which is tried once; `native` stays in fp32."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from artifacts.errors import HalfTried
from artifacts.packs import RecordSet, stored_namespaces
from artifacts.store import open_store
from flows.job.prepare import prepare_without_media
from flows.job.vector_precision import with_vector_precision
from flows.options.vectors import EmbedConfig
from flows.pipelines import EMBED
from stages.embed import precision_trial
from stages.embed.job import EmbedJob
from stages.embed.run import run as embed_stage
from stages.embed.trials import KIND
from stages.models.encoding.job import EncodeItem
from stages.models.half_job import HalfJob
from stages.process.job import job_fields
from tests.support import embedding, gpus
from tests.support.dual_encoders import save_clip
from tests.support.embedding import vectors, write_images
from tests.support.inside import InsideLauncher
from tests.support.pipeline import ROOT, SECONDS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("precision")
    (made / "pictures").mkdir()
    write_images(made / "pictures")
    save_clip(made / "clip")
    return made


def embed(folder: Path, place: Path, *more: str) -> str:
    """Run the command on a machine with a GPU, and return what it prints."""
    place.mkdir(exist_ok=True)
    cards = gpus.environment(gpus.plain().write(place / "gpu"))
    words = ["embed", str(folder / "pictures"), "--model", str(folder / "clip"), *more]
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli.main", *words, "--out", str(place / "out")],
        cwd=ROOT,
        env={**cards, "PENSTOCK_STORE": str(place / "store")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def run_of(place: Path) -> Any:
    return json.loads((place / "out" / "run.json").read_text())


def verdicts(place: Path) -> list[dict[str, Any]]:
    store = open_store(str(place / "store"))
    found = [RecordSet(store, KIND, name) for name in stored_namespaces(store, KIND)]
    return [records.meta(key) for records in found for key in sorted(records.keys())]


def dtype_of(place: Path) -> str:
    (stage,) = (s for s in run_of(place)["stages"] if s["name"] == "embed")
    return str(stage["notes"]["dtype"])


@pytest.mark.slow
def test_auto_takes_fp16_after_one_trial_and_native_stays(folder: Path, tmp_path: Path) -> None:
    said = embed(folder, tmp_path, "--precision", "auto")
    assert "the vision half runs in fp16 (cosine of fp16 to fp32 at least" in said
    assert dtype_of(tmp_path) == "torch.float16"
    (verdict,) = verdicts(tmp_path)
    assert verdict["holds"] and verdict["images"] == 6
    narrow = np.array(vectors(tmp_path))
    again = embed(folder, tmp_path, "--precision", "auto")
    assert "cosine" not in again
    assert [stage["items"] for stage in run_of(tmp_path)["stages"]] == [0, 0]
    embed(folder, tmp_path, "--precision", "native")
    assert dtype_of(tmp_path) == "torch.float32"
    wide = np.array(vectors(tmp_path))
    assert not np.array_equal(wide, narrow) and np.allclose(wide, narrow, atol=1e-2)
    assert verdicts(tmp_path) == [verdict]


@pytest.mark.slow
def test_auto_stays_in_fp32_where_such_vectors_are_stored(folder: Path, tmp_path: Path) -> None:
    embed(folder, tmp_path)
    said = embed(folder, tmp_path, "--precision", "auto", "--batch-size", "2")
    assert "the vision half runs in fp32 (the store has vectors of it in fp32" in said
    assert verdicts(tmp_path) == []


@pytest.fixture(scope="module")
def on_a_cpu(folder: Path) -> Path:
    place = folder / "cpu"
    options = ("--precision", "auto", "--keep-frames")
    assert embedding.embed(folder / "pictures", folder / "clip", place, *options) == 0
    return place


def test_auto_tries_nothing_on_a_cpu(on_a_cpu: Path) -> None:
    assert dtype_of(on_a_cpu) == "torch.float32"
    assert verdicts(on_a_cpu) == []


@pytest.mark.parametrize(("least", "taken"), [(0.9999, "fp16"), (1.1, "fp32")])
def test_a_trial_stores_its_result_which_decides_for_this_kind_of_card(
    folder: Path,
    on_a_cpu: Path,
    tmp_path: Path,
    least: float,
    taken: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(precision_trial, "MIN_COSINE", least)
    store, shown = open_store(str(tmp_path)), open_store(str(on_a_cpu / "store"))
    config = EmbedConfig(
        sources=(), model=str(folder / "clip"), precision="auto", store=str(tmp_path)
    )
    model = prepare_without_media(config, InsideLauncher(), EMBED).model
    assert model.trial == "", "this machine has no GPU"
    tried = with_vector_precision(config, model, store, "cuda:0")
    assert tried.trial and tried.best("vision").precision == "fp32"
    (namespace,) = stored_namespaces(shown, "frames")
    frames = sorted(RecordSet(shown, "frames", namespace).keys())
    job = EmbedJob(
        half=HalfJob(model=str(folder / "clip"), dtype="float32", route="dual"),
        store=str(tmp_path),
        frames_store=shown.url,
        frames_namespace=namespace,
        namespace="made",
        batches=[[EncodeItem(f"{at:064x}", key, "image") for at, key in enumerate(frames)]],
        trial=tried.trial,
    )
    with pytest.raises(HalfTried, match=f"runs in {taken} .* on 6 images"):
        embed_stage(job_fields(job), cast(Any, None))
    assert stored_namespaces(store, "embeddings") == set(), "a trial makes no vectors"
    known = with_vector_precision(config, model, store, "cuda:0")
    assert (known.best("vision").precision, known.trial) == (taken, "")
    assert [s.precision for s in known.settings["vision"][1:]] == ["int8", "nf4"]
    assert [note for note in known.notes if "runs in fp32" in note] == list(
        known.notes if taken == "fp32" else ()
    )
    native = replace(config, precision="native")
    assert with_vector_precision(native, model, store, "cuda:0") == model
    assert with_vector_precision(config, model, store, "cpu") == model
