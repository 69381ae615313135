"""`--vision-backend onnx`: the halves of a dual encoder by graphs, near what torch makes, under
keys of their own; what is refused of graphs that are not what was exported; and TensorRT, which is
no dependency: what is missing of it is said."""

import ctypes
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from artifacts.errors import EnvironmentFault
from flows.core.checkpoint import graphs
from flows.core.checkpoint.graphs import (
    LIBRARIES,
    check_tensorrt,
    engines_folder,
    missing_libraries,
    store_speed,
    tensorrt_version,
)
from flows.interfaces.cli.main import main
from stages.models.graphs.manifest import FILE
from stages.models.graphs.sessions import CPU
from tests.support.builders.clip import save_clip
from tests.support.embedding import embed, items, vectors, write_images
from tests.support.graphs import graph_job, with_graphs
from tests.support.made_up_runs import write_graphs
from tests.support.pipeline import read_lines

Said = pytest.CaptureFixture[str]
BY_GRAPHS = ("--vision-backend", "onnx")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def model(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny dual encoder with graphs of both halves."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    with_graphs(graph_job(clip, folder, "vision", "language", route="dual"))
    return folder


@pytest.fixture(scope="module")
def seeing(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a made-up graph of its vision half alone."""
    folder = Path(shutil.copytree(clip, tmp_path_factory.mktemp("seeing") / "model"))
    write_graphs(folder, [path.name for path in folder.glob("*.safetensors")])
    return folder


@pytest.fixture
def own(seeing: Path, tmp_path: Path) -> Path:
    """That one, to be changed."""
    return Path(shutil.copytree(seeing, tmp_path / "own"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which the model is described once."""
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("pictures"))


def halves(place: Path) -> Any:
    """What the record of a run says of the halves."""
    return json.loads((place / "out" / "run.json").read_text())["plan"]["halves"]


@pytest.mark.slow
def test_vectors_by_graphs_are_near_those_of_torch_and_are_others(
    pictures: Path, model: Path, tmp_path: Path
) -> None:
    assert embed(pictures, model, tmp_path) == 0
    expected = np.array(vectors(tmp_path))
    assert embed(pictures, model, tmp_path, *BY_GRAPHS) == 0
    found = np.array(vectors(tmp_path))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert items(tmp_path)["embed"] == len(expected), "they have keys of their own"
    vision = halves(tmp_path)["vision"]
    assert vision["precision"] == "onnx-fp32" and vision["graphs"]["provider"] == CPU
    assert embed(pictures, model, tmp_path, *BY_GRAPHS) == 0
    assert items(tmp_path) == {"frames": 0, "embed": 0} and np.array_equal(found, vectors(tmp_path))


@pytest.mark.slow
def test_labels_are_told_by_graphs_of_both_halves(
    pictures: Path, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "templates.txt").write_text("{} in a photo\n")
    scores = []
    for more in ((), BY_GRAPHS):
        where = ["--store", str(tmp_path / "store"), "--out", str(tmp_path / "out")]
        where += ["--templates", str(tmp_path / "templates.txt"), "--labels", "cat,sky,green"]
        assert main(["label", str(pictures), "--model", str(model), *where, *more]) == 0
        rows = read_lines(tmp_path / "out" / "labels.jsonl")
        scores.append([[each["score"] for each in row["labels"]] for row in rows])
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-3)
    assert halves(tmp_path)["language"]["precision"] == "onnx-fp32"
    assert items(tmp_path)["embed_texts"] == 1


def last_line(errors: str) -> str:
    assert "Traceback" not in errors
    return errors.strip().splitlines()[-1]


@pytest.mark.slow
def test_a_graph_with_a_flipped_bit_is_refused(
    pictures: Path, model: Path, tmp_path: Path, place: Path, capsys: Said
) -> None:
    own = Path(shutil.copytree(model, tmp_path / "own"))
    path = own / "onnx" / "vision-0.onnx.data"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert embed(pictures, own, place, *BY_GRAPHS) == 5
    printed = last_line(capsys.readouterr().err)
    assert "vision-0.onnx.data differs from the exported file" in printed
    assert embed(pictures, own, place) == 0, "torch does without"


def test_graphs_of_other_weights_are_refused(
    pictures: Path, own: Path, place: Path, capsys: Said
) -> None:
    from safetensors.torch import load_file, save_file

    path = own / "model.safetensors"
    tensors = load_file(path)
    tensors["logit_scale"] += 1
    path.unlink()
    save_file(tensors, path, {"format": "pt"})
    assert embed(pictures, own, place, *BY_GRAPHS) == 5
    assert "were made from other weights" in last_line(capsys.readouterr().err)


def test_graphs_that_are_gone_or_are_those_of_another_program_are_refused(
    pictures: Path, own: Path, place: Path, capsys: Said
) -> None:
    (own / "onnx" / "vision.onnx").unlink()
    assert embed(pictures, own, place, *BY_GRAPHS) == 5
    assert "vision.onnx is missing" in last_line(capsys.readouterr().err)
    # Many checkpoints bring graphs of another program, in a folder of the same name.
    (own / "onnx" / FILE).unlink()
    assert embed(pictures, own, place, *BY_GRAPHS) == 2
    assert "has no vision graphs" in last_line(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (["--vision-backend", "tensorrt"], 5, "tensorrt needs a GPU"),
        (["--vision-backend", "openvino"], 2, "unknown --vision-backend openvino"),
        ([*BY_GRAPHS, "--precision", "nf4"], 2, "exclude each other"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    pictures: Path, seeing: Path, place: Path, capsys: Said, more: list[str], code: int, words: str
) -> None:
    assert embed(pictures, seeing, place, *more) == code
    assert words in last_line(capsys.readouterr().err)


@pytest.mark.slow
def test_auto_takes_graphs_that_passed_and_are_faster_here(
    pictures: Path, model: Path, tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Path(shutil.copytree(model, tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def planned() -> str:
        where = ["--store", str(tmp_path / "store"), "--vision-backend", "auto"]
        assert main(["plan", str(pictures), "--model", str(own), *where]) == 0
        return capsys.readouterr().out

    assert "were not measured on this machine" in (text := planned()) and "onnx-fp32" not in text
    assert embed(pictures, own, tmp_path, *BY_GRAPHS) == 0
    digest = halves(tmp_path)["vision"]["graphs"]["digest"]
    store_speed("cpu", digest, CPU, {"torch": 1.0, "graphs": 2.0})
    assert "take 2.00 times as long" in planned()
    store_speed("cpu", digest, CPU, {"torch": 3.0, "graphs": 2.0})
    assert "1.50 times as fast as torch" in (text := planned()) and "onnx-fp32" in text
    verdict = json.loads((own / "parity.json").read_text())
    (own / "parity.json").write_text(json.dumps(verdict | {"passed": False}))
    assert "did not pass" in planned()
    shutil.rmtree(own / "onnx")
    assert "it has no graphs" in planned()


@pytest.mark.slow
def test_doctor_measures_graphs_beside_torch(
    model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from artifacts.records.store import open_store
    from flows.commands.doctor.graph_times import time_graphs
    from flows.core.machine.launch import DirectLauncher

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = open_store(str(tmp_path / "store"))
    speed = time_graphs(str(model), "cpu", store, DirectLauncher(lambda *_: None))
    assert speed.torch > 0 and speed.graphs > 0
    assert list((tmp_path / "cache" / "penstock" / "graphs").glob("*.json"))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Libraries that open, of a version that may be changed."""
    library = SimpleNamespace(number=101302)
    library.getInferLibVersion = lambda: library.number
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    return library


def test_what_is_missing_is_named_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(name: str) -> object:
        if name == LIBRARIES[1]:
            raise OSError(name)
        return object()

    monkeypatch.setattr(ctypes, "CDLL", opened)
    assert missing_libraries() == [LIBRARIES[1]]
    with pytest.raises(EnvironmentFault, match=f"cannot open {LIBRARIES[1]}") as caught:
        check_tensorrt("cuda:0")
    assert "tensorrt-cu13-libs>=10.9,<11" in str(caught.value.hint)
    with pytest.raises(EnvironmentFault, match="needs a GPU"):
        check_tensorrt("cpu")


def test_one_that_is_there_is_told_by_its_version(installed: SimpleNamespace) -> None:
    check_tensorrt("cuda:0")
    assert not missing_libraries() and tensorrt_version() == "10.13.2"


def test_what_it_makes_is_kept_apart_by_all_that_decides_it(
    installed: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(graphs, "driver_version", lambda _: "570.1")
    monkeypatch.setattr(graphs, "device_model", lambda _: "NVIDIA L4")
    monkeypatch.setattr(graphs, "device_capability", lambda _: (8, 9))

    def folder(digest: str = "a", batch: int = 8) -> Path:
        return engines_folder(tmp_path, digest * 64, "cuda:0", batch)

    assert folder() == folder()
    found = [folder(), folder("b"), folder(batch=4)]
    installed.number = 100900
    found.append(folder())
    monkeypatch.setattr(graphs, "device_model", lambda _: "NVIDIA A10")
    found.append(folder())
    assert len(set(found)) == 5 and all(path.parent == tmp_path / "engines" for path in found)
