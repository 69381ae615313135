"""`penstock export --to onnx`: graphs are judged by captions and vectors, make the same bytes
whenever they are killed, and do not pass where 8 bit are too few."""

import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel

import penstock_demo
from artifacts.errors import EnvironmentFault, UsageError
from flows.cli.main import main
from flows.options.export_config import ExportRequest
from penstock_demo.clips import write_clips
from penstock_demo.dual.pictures import write_images
from stages.export import jobs
from stages.models.graphs.manifest import FILE, read_manifest
from tests.support.dual_encoders import save_clip
from tests.support.graphs import graph_job as job_of
from tests.support.graphs import with_graphs
from tests.support.pipeline import read_lines

SAMPLES = 64
"""Clips by which graphs are judged: of fewer, neighbours are too much alike to tell."""


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    write_clips(folder, SAMPLES, seed=5)
    return folder


def export(model: str, kind: str, out: Path, clips: Path, store: Path, *more: str) -> int:
    told = ["export", model, "--to", kind, "--out", str(out), "--samples", str(SAMPLES)]
    return main([*told, "--calibrate", str(clips), "--store", str(store), *more])


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
    page = (Path(__file__).parents[1] / "docs" / "graphs.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```py\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    found: dict[str, Any] = {}
    exec(compile(code, "docs/graphs.md", "exec"), found)
    assert "pixel_values" in capsys.readouterr().out
    told = ["embed", *names, "--model", "exported", "--vision-backend", "onnx"]
    assert main([*told, "--store", "store", "--out", "out"]) == 0
    assert np.allclose(np.load("out/embeddings.npy"), found["vectors"], atol=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["onnx", "onnx-int8"])
def test_the_demo_model_captions_by_its_graphs(kind: str, clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "made"
    assert export("demo", kind, out, clips, tmp_path / "store") == 0
    parity = json.loads((out / "parity.json").read_text())
    assert parity["passed"] and parity["frames"] >= 64
    assert {"features", "text"} <= parity.keys() and parity["text"]["captions"] == SAMPLES
    said = []
    for model, more in (("demo", ()), (str(out), ("--vision-backend", "onnx"))):
        where = ["--store", str(tmp_path / "store"), "--out", str(tmp_path / "said")]
        assert main(["caption", str(clips), "--model", model, *where, *more]) == 0
        rows = read_lines(tmp_path / "said" / "captions.jsonl")
        said.append([row["caption"] for row in rows])
    assert rows[0]["precision"]["vision"] == f"onnx-{jobs.GRAPHS[kind]}"
    # Few bits are of what decodes; what sees is computed by its graphs all the same.
    where = ["--store", str(tmp_path / "store"), "--out", str(tmp_path / "few")]
    few = ["--vision-backend", "onnx", "--precision", "nf4", "--limit", "2"]
    assert main(["caption", str(clips), "--model", str(out), *where, *few]) == 0
    row = read_lines(tmp_path / "few" / "captions.jsonl")[0]
    assert row["precision"] == {**rows[0]["precision"], "language": "nf4"}
    same = sum(a == b for a, b in zip(*said, strict=True)) / SAMPLES
    assert same >= parity["text"]["captions_as_native"] - 1 / SAMPLES
    assert export("demo", kind, out, clips, tmp_path / "store") == 0, "it was there before"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_tower_with_outliers_does_not_pass_in_8_bit(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A channel that is a thousand times the others takes all the steps of 8 bit; what is done to
    it is undone in the weights that it meets, so that the model itself is the same."""
    from safetensors.torch import load_file, save_file

    model = Path(shutil.copytree(penstock_demo.DUAL_CHECKPOINT, tmp_path / "model"))
    tensors = load_file(model / "model.safetensors")
    before = [name for name in tensors if "vision" in name and "layer_norm2.weight" in name]
    assert before
    for name in before:
        into = name.replace("layer_norm2.weight", "mlp.fc1.weight")
        for each in (name, name.replace(".weight", ".bias")):
            tensors[each] = tensors[each].float()
            tensors[each][:4] *= 1000
        tensors[into] = tensors[into].float()
        tensors[into][:, :4] /= 1000
    save_file({n: t.float() for n, t in tensors.items()}, model / "model.safetensors")
    out = tmp_path / "made"
    assert export(str(model), "onnx", tmp_path / "fp32", clips, tmp_path / "store") == 0
    # Its text half reads texts as long as they are, and filled up.
    told = ["label", str(clips), "--model", str(tmp_path / "fp32"), "--labels", "red,blue"]
    where = ["--store", str(tmp_path / "store"), "--out", str(tmp_path / "labels")]
    assert main([*told, *where, "--limit", "2", "--vision-backend", "onnx"]) == 0
    assert export(str(model), "onnx-int8", out, clips, tmp_path / "store") == 1
    said = capsys.readouterr().err
    assert "quality limit missed: " in said and "centred cosine of features" in said
    assert (out / "rejected" / "onnx" / FILE).exists() and not (out / "config.json").exists()


def graphs_in(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((folder / "onnx").iterdir())
    }


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_an_export_that_is_killed_leaves_the_same_graphs_or_none(tmp_path: Path) -> None:
    source = save_clip(tmp_path / "clip")
    with_graphs(job_of(source, tmp_path / "whole", "vision", route="dual"))
    wanted = graphs_in(tmp_path / "whole")
    began = time.monotonic()
    assert one_process(source, tmp_path / "timed").wait(300) == 0
    taken = time.monotonic() - began
    for step in (1, 3, 5):
        folder = tmp_path / f"killed-{step}"
        process = one_process(source, folder)
        time.sleep(taken * (0.35 + 0.13 * step))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert read_manifest(folder) is None or graphs_in(folder) == wanted
        assert one_process(source, folder).wait(300) == 0
        assert graphs_in(folder) == wanted and not (folder / "making").exists()


def one_process(source: Path, folder: Path) -> "subprocess.Popen[bytes]":
    """The stage that makes graphs, in a process of its own."""
    code = (
        "import sys; from pathlib import Path; "
        "from tests.support.graphs import graph_job, with_graphs; "
        "with_graphs(graph_job(Path(sys.argv[1]), Path(sys.argv[2]), 'vision', route='dual'))"
    )
    return subprocess.Popen([sys.executable, "-c", code, str(source), str(folder)])


def test_what_no_graph_can_be_of_is_refused(tmp_path: Path) -> None:
    def asked(half: str = "", **more: bool) -> ExportRequest:
        return ExportRequest(kind="onnx", folder=tmp_path, half=half, **more)  # type: ignore[arg-type]

    with pytest.raises(UsageError, match="--half language --to onnx is not supported"):
        asked("language")
    with pytest.raises(UsageError, match="for captioning models"):
        asked("both").parts("replay")
    with pytest.raises(UsageError, match="cannot be split"):
        asked().parts("joint")
    with pytest.raises(UsageError, match="needs media"):
        asked(stored=True).parts("replay")
    assert asked().parts("dual") == ("vision", "language") and asked().parts("splice") == (
        "vision",
    )


@pytest.mark.slow
def test_without_the_packages_it_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(jobs, "PACKAGES", ("onnx", "no-such-package"))
    with pytest.raises(EnvironmentFault, match="no-such-package is not installed"):
        jobs.check_packages()
    told = ["export", "demo", "--to", "onnx", "--out", str(tmp_path / "made")]
    assert main([*told, "--store", str(tmp_path / "store")]) == 5
    assert "pip install 'onnx" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_a_graph_that_computes_otherwise_is_refused() -> None:
    from stages.export.graphs.make import check_agreement, difference

    wanted, found = {"image": torch.ones(2, 3)}, {"image": torch.ones(2, 3) * 1.01}
    assert difference(wanted, found) == pytest.approx(0.01, rel=1e-3)
    assert difference(wanted, {"image": torch.ones(3, 2)}) == float("inf")
    assert difference(wanted, {"image": torch.full((2, 3), float("nan"))}) == float("inf")
    with pytest.raises(UsageError, match="differs from the model"):
        check_agreement("fp32", "2 x image", 0.01, "tower")
    check_agreement("fp16", "2 x image", 0.01, "tower")
