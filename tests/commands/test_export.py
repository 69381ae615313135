"""A model in few bits or as graphs is written, judged by real media, and put into its place, come
what may; 8 bit do not pass where they are too few."""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel

import penstock_demo
from artifacts.disk.json_shapes import Json
from artifacts.errors import EnvironmentFault, PenstockError, UsageError
from flows.commands.export import EXPORTED_VECTORS
from flows.commands.export.export_command import _print_result
from flows.commands.export.options import ExportConfig
from flows.commands.export.result import Exported
from flows.commands.export.run import export
from flows.commands.export.samples import evaluation_media, features_job, halves_of
from flows.core.console.display import Display
from flows.core.options.commands import CaptionConfig
from flows.execution.run import caption
from flows.interfaces.cli.main import main
from penstock_demo.clips import write_clips
from penstock_demo.dual.pictures import write_images
from stages.export import GRAPHS
from stages.export.parity import PARITY, Figures, evaluate_parity
from tests.support.described import described
from tests.support.graphs import graph_job as job_of
from tests.support.graphs import with_graphs
from tests.support.inside import InsideLauncher
from tests.support.pipeline import read_lines

SAMPLES = 8
NAMES = ("config.json", "model.safetensors", "penstock_made_of.json")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    write_clips(folder, SAMPLES, seed=5)
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that all exports share, so that the original captions once."""
    return tmp_path_factory.mktemp("store")


def config(store: Path, *sources: Path, model: str = "demo", **changes: Any) -> CaptionConfig:
    return CaptionConfig(sources=tuple(map(str, sources)), model=model, store=str(store), **changes)


def exported(folder: Path, kind: str, message: CaptionConfig, **changes: Any) -> Exported:
    changes = {"samples": SAMPLES, **changes}
    request = ExportConfig(model="demo", to=kind, out=str(folder), **changes)
    return export(message, request, Display(quiet=True))


def test_a_checkpoint_is_not_evaluated_on_media_that_calibrated_it() -> None:
    def samples(*counts: int) -> list[Any]:
        media = [SimpleNamespace(digest=f"{at}") for at in range(len(counts))]
        return [
            SimpleNamespace(task=SimpleNamespace(medium=medium), chunk=chunk)
            for medium, count in zip(media, counts, strict=True)
            for chunk in range(count)
        ]

    for counts, sizes in (((10, 10, 10, 10), (20, 20)), ((1, 7, 6), (7, 7)), ((1,) * 8, (4, 4))):
        seen, others, note = halves_of(samples(*counts))
        media = [{each.task.medium.digest for each in part} for part in (seen, others)]
        assert not media[0] & media[1] and (len(seen), len(others)) == sizes and not note
    seen, others, note = halves_of(samples(5))
    assert seen + others == samples(5) and len(seen) == 3
    assert note.startswith("one file: its first half calibrates")


@pytest.mark.slow
def test_a_checkpoint_is_judged_placed_and_captions(
    tmp_path: Path, clips: Path, store: Path
) -> None:
    result = exported(tmp_path / "nf4", "nf4", config(store, clips))
    assert result.accepted and result.exit_code == 0 and result.out == tmp_path / "nf4"
    parity = json.loads((tmp_path / "nf4" / PARITY).read_text())
    assert parity["passed"] and parity["frames"] >= 64
    assert 0 < parity["text"]["divergence"] < 0.005 < 0.9 < parity["text"]["token_agreement"]
    assert not (tmp_path / "nf4" / "rejected").exists()
    assert exported(tmp_path / "nf4", "nf4", config(store, clips)).before
    with pytest.raises(UsageError, match="holds another checkpoint"):
        exported(tmp_path / "nf4", "int8", config(store, clips))


@pytest.mark.slow
def test_what_it_says_is_what_its_figures_say(tmp_path: Path, clips: Path, store: Path) -> None:
    result = exported(tmp_path / "int8", "int8", config(store, clips))
    record = {}
    for name, model in (("original", "demo"), ("exported", str(result.out))):
        message = config(store, clips, model=model, out=str(tmp_path / name), precision="native")
        caption(message, Display(quiet=True))
        lines = (tmp_path / name / "captions.jsonl").read_text().splitlines()
        record[name] = [json.loads(line)["caption"] for line in lines]
    same = sum(a == b for a, b in zip(*record.values(), strict=True)) / SAMPLES
    assert result.parity.text is not None
    assert same >= result.parity.text.captions_as_native - 1 / SAMPLES
    # A module that is lost on the way, or its scales alone, are not passed over.
    for endings, words in (("SCB weight_format", "its scales are not"), ("", "lacks 1 tensor of")):
        broken = shutil.copytree(result.out, tmp_path / f"broken{len(endings)}")
        lose_a_module(broken, endings.split())
        message = config(store, clips, model=str(broken), out=str(tmp_path / "out"))
        with pytest.raises(EnvironmentFault, match=words) as caught:
            caption(message, Display(quiet=True))
        assert "\n" not in caught.value.message and caught.value.hint


def lose_a_module(folder: Path, endings: list[str]) -> None:
    """Leave out these tensors of one quantized weight; none are named: all of them."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith(".SCB")).removesuffix("SCB")
    lost = {f"{name}{ending}" for ending in endings or ("SCB", "weight_format", "weight")}
    save_file({k: t for k, t in tensors.items() if k not in lost}, path, {"format": "pt"})


@pytest.mark.slow
def test_one_that_does_not_pass_is_kept_and_may_be_accepted(
    tmp_path: Path, clips: Path, store: Path
) -> None:
    message = config(store, clips)
    result = exported(tmp_path / "made", "nf4", message, half="both")
    assert (result.accepted, result.exit_code) == (False, 1)
    assert result.out == tmp_path / "made" / "rejected" and (result.out / "config.json").exists()
    assert not (tmp_path / "made" / "config.json").exists()
    assert any("centred cosine" in missed for missed in result.parity.missed)
    accepted = exported(tmp_path / "made", "nf4", message, half="both", accept=True)
    assert accepted.accepted and (tmp_path / "made" / "config.json").exists()
    assert not accepted.parity.passed


@pytest.mark.slow
def test_weights_are_calibrated_on_media_and_on_what_the_store_has(
    tmp_path: Path, clips: Path, store: Path
) -> None:
    plain = exported(tmp_path / "plain", "w4a16", config(store, clips))
    expected = (plain.out / "model.safetensors").read_bytes()
    for stored, message in ((False, config(store, clips)), (True, config(store))):
        given = {"calibrate_store": "given"} if stored else {"calibrate": ("given",)}
        folder = tmp_path / f"fitted-{stored}"
        fitted = exported(folder, "w4a16", message, accept=True, **given)
        assert fitted.parity.recipe["calibrated"] and not plain.parity.recipe["calibrated"]
        found = (fitted.out / "model.safetensors").read_bytes()
        assert found != expected and len(found) == len(expected)
    with pytest.raises(UsageError, match="none is left for the evaluation"):
        one = config(store, next(clips.glob("*.mp4")))
        exported(tmp_path / "few", "w4a16", one, calibrate=("given",))
    message = config(store, clips, model=str(plain.out), out=str(tmp_path / "out"))
    assert caption(message, Display(quiet=True)).exit_code == 0
    assert all(line["caption"] for line in read_lines(tmp_path / "out/captions.jsonl"))


@pytest.mark.slow
def test_the_vision_half_of_a_dual_encoder_is_judged_by_its_vectors(
    tmp_path: Path, clips: Path, store: Path
) -> None:
    message = config(store, clips, model=str(penstock_demo.DUAL_CHECKPOINT))
    result = exported(tmp_path / "dual", "int8", message)
    assert result.parity.features is not None and result.parity.text is None
    assert result.parity.features.centred_mean > 0.9
    with pytest.raises(UsageError, match="--half language is not supported"):
        exported(tmp_path / "text", "int8", message, half="language")


def test_what_cannot_be_judged_is_said_before_anything_is_written(tmp_path: Path) -> None:
    given: dict[str, Any] = {"model": "demo", "to": "nf4", "out": str(tmp_path / "made")}
    empty, request = config(tmp_path / "store"), ExportConfig(**given, calibrate_store="given")
    with pytest.raises(UsageError, match="no captions of demo in"):
        export(empty, request, Display(quiet=True), lambda listen: InsideLauncher(listen=listen))
    assert not list(tmp_path.rglob("*.safetensors"))
    for changes in ({"to": "awq"}, {"half": "left"}, {"group": 48}, {"samples": 1}):
        with pytest.raises(UsageError, match=f"--{next(iter(changes))} ") as caught:
            ExportConfig(**given | changes)
        assert caught.value.hint


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("", "holds other files"), ("int8", "holds another checkpoint"), ("nf4", "")],
)
def test_a_dry_run_refuses_a_folder_that_the_command_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, reason: str
) -> None:
    store, out = described(tmp_path / "store"), tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("{}")
    recipe: dict[str, Json] = {
        "source": ["a digest"],
        "kind": kind,
        "parts": ["language"],
        "group": 0,
    }
    recipe |= {"calibrated": False, "samples": SAMPLES}
    if kind:
        verdict = evaluate_parity(Figures(), SAMPLES, recipe)
        (out / PARITY).write_text(json.dumps(verdict.to_json()))
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    command = ["export", "demo", "--to", "nf4", "--out", str(out), "--store", str(store)]
    command += ["--calibrate", str(tmp_path / "a.png"), "--samples", str(SAMPLES), "--dry-run"]
    assert main(command) == (2 if reason else 0)
    assert reason in capsys.readouterr().err


def test_clips_of_a_killed_export_are_deleted_and_those_of_a_running_one_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "penstock-export-killed" / "clips").mkdir(parents=True)
    request = ExportConfig(model="demo", to="nf4", out=str(tmp_path / "out"), samples=2)
    with evaluation_media(request, print) as running, evaluation_media(request, print) as sources:
        assert {*map(Path, running + sources)} == {*tmp_path.glob("penstock-export-*/clips")}
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
def test_killed_at_any_moment_it_becomes_the_same(tmp_path: Path, clips: Path) -> None:
    def command(out: Path) -> list[str]:
        store = str(out.parent / "store")
        words = ["export", "demo", "--to", "w4a16", "--out", str(out), "--store", store]
        words += ["--calibrate", str(clips), "--samples", str(SAMPLES), "--accept", "--quiet"]
        return [sys.executable, "-m", "flows.interfaces.cli.main", *words]

    subprocess.run(command(tmp_path / "whole" / "made"), check=True)
    made, killed = tmp_path / "cut" / "made", 0
    for there in ("parity/native/run.json", "rejected", "parity/exported/run.json"):
        process = subprocess.Popen(command(made), start_new_session=True)
        while not (made / there).exists() and process.poll() is None:
            time.sleep(0.02)
        killed += process.poll() is None
        process.kill()
        process.wait()
    assert killed >= 2
    subprocess.run(command(tmp_path / "cut" / "made"), check=True)
    for name in NAMES:
        pair = [(tmp_path / run / "made" / name).read_bytes() for run in ("whole", "cut")]
        assert pair[0] == pair[1], name


GRAPH_SAMPLES = 64
"""Clips by which graphs are judged: of fewer, neighbours are too much alike to tell."""


@pytest.fixture(scope="module")
def many_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    write_clips(folder, GRAPH_SAMPLES, seed=5)
    return folder


def export_graphs(model: str, kind: str, out: Path, many_clips: Path, store: Path) -> int:
    messages = ["export", model, "--to", kind, "--out", str(out), "--samples", str(GRAPH_SAMPLES)]
    return main([*messages, "--calibrate", str(many_clips), "--store", str(store)])


@pytest.mark.slow
def test_the_code_of_the_page_gives_the_vectors_of_embed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    source, names = tmp_path / "model", ("first.png", "second.png")
    shutil.copytree(penstock_demo.DUAL_CHECKPOINT, source)
    whole = AutoModel.from_pretrained(penstock_demo.DUAL_CHECKPOINT, dtype=torch.float32)
    whole.save_pretrained(source)
    with_graphs(job_of(source, tmp_path / "exported", "vision", route="dual"))
    for image, truth in zip(names, write_images(tmp_path / "drawn", "trained", 2, 1), strict=True):
        (tmp_path / "drawn" / truth.file).rename(image)
    page = (Path(__file__).parents[2] / "docs" / "graphs.md").read_text(encoding="utf-8")
    found: dict[str, Any] = {}
    (code,) = re.findall(r"^```py\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    exec(compile(code, "docs/graphs.md", "exec"), found)
    assert "pixel_values" in capsys.readouterr().out
    messages = ["embed", *names, "--model", "exported", "--vision-backend", "onnx"]
    assert main([*messages, "--store", "store", "--out", "out"]) == 0
    assert np.allclose(np.load("out/embeddings.npy"), found["vectors"], atol=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["onnx", "onnx-int8"])
def test_the_demo_model_captions_by_its_graphs(kind: str, many_clips: Path, tmp_path: Path) -> None:
    out, store = tmp_path / "made", tmp_path / "store"
    assert export_graphs("demo", kind, out, many_clips, store) == 0
    parity = json.loads((out / "parity.json").read_text())
    assert not parity["missed"]
    assert parity["features"]["neighbours"] > 0.95 and parity["frames"] >= 64
    assert {"features", "text"} <= parity.keys() and parity["text"]["captions"] == GRAPH_SAMPLES

    def said(name: str, model: str, *more: str) -> list[dict[str, Any]]:
        where = ["--store", str(store), "--out", str(tmp_path / name)]
        assert main(["caption", str(many_clips), "--model", model, *where, *more]) == 0
        return read_lines(tmp_path / name / "captions.jsonl")

    plain, rows = said("said", "demo"), said("said", str(out), "--vision-backend", "onnx")
    assert rows[0]["precision"]["vision"] == f"onnx-{GRAPHS[kind]}"
    # Few bits are of what decodes; what sees is computed by its graphs all the same.
    nf4 = ("--vision-backend", "onnx", "--precision", "nf4", "--limit", "2")
    row = said("few", str(out), *nf4)[0]
    assert row["precision"] == {**rows[0]["precision"], "language": "nf4"}
    same = sum(a["caption"] == b["caption"] for a, b in zip(plain, rows, strict=True))
    assert same / GRAPH_SAMPLES >= parity["text"]["captions_as_native"] - 1 / GRAPH_SAMPLES
    assert export_graphs("demo", kind, out, many_clips, store) == 0, "it was there before"


@pytest.mark.parametrize("kind", ["int8", "nf4", "onnx"])
def test_groups_of_columns_are_refused_where_scales_have_none(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"--group has no effect with --to {kind}"):
        ExportConfig(model="demo", to=kind, out=str(tmp_path), group=64)
    assert ExportConfig(model="demo", to="w4a16", out=str(tmp_path), group=64).group == 64


@pytest.mark.parametrize(("kind", "others"), [("nf4", ""), ("w4a16", ", vLLM or transformers")])
def test_a_checkpoint_comes_with_the_command_that_takes_it(
    kind: str, others: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parity = SimpleNamespace(missed=(), text=1, recipe={"kind": kind})
    exported: Any = SimpleNamespace(parity=parity, accepted=True, out="o", line=lambda: "o: 1 MB")
    _print_result(exported, graphs=False)
    use = f"o: 1 MB; use it with `penstock caption SOURCES --model o`{others}\n"
    assert capsys.readouterr().out == use


def test_what_no_graph_can_be_of_is_refused(tmp_path: Path) -> None:
    def request(half: str = "", **more: Any) -> ExportConfig:
        return ExportConfig(model="demo", to="onnx", out=str(tmp_path), half=half, **more)

    for call, says in (
        (lambda: request("language"), "--half language --to onnx is not supported"),
        (lambda: request("both").parts("replay"), "for captioning models"),
        (lambda: request().parts("joint"), "cannot be split"),
        (lambda: request(calibrate_store="s").parts("replay"), "needs media"),
    ):
        with pytest.raises(UsageError, match=says):
            call()
    assert request().parts("dual") == ("vision", "language")
    assert request().parts("splice") == ("vision",)


def test_a_graph_that_computes_otherwise_is_refused() -> None:
    from stages.export.graphs.make import check_agreement, difference

    expected, found = {"image": torch.ones(2, 3)}, {"image": torch.ones(2, 3) * 1.01}
    assert difference(expected, found) == pytest.approx(0.01, rel=1e-3)
    assert difference(expected, {"image": torch.ones(3, 2)}) == float("inf")
    assert difference(expected, {"image": torch.full((2, 3), float("nan"))}) == float("inf")
    with pytest.raises(UsageError, match="differs from the model"):
        check_agreement("fp32", "2 x image", 0.01, "tower")
    check_agreement("fp16", "2 x image", 0.01, "tower")


def test_samples_on_which_the_exported_checkpoint_fails_are_counted_fails() -> None:
    task = SimpleNamespace(identity=("digest", 0, ""))
    ledger = SimpleNamespace(tasks=lambda media: [task], has_failed=lambda task: True)
    job: Any = SimpleNamespace(pipeline=EXPORTED_VECTORS, ledger=ledger, media=[])
    sample: Any = SimpleNamespace(task=task)
    with pytest.raises(PenstockError, match="the exported checkpoint fails on 1 of 1 samples"):
        features_job([sample], job)
