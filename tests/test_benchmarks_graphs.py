"""The benchmark of graphs times every way to compute a vision half, and says how near each is."""

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import graphs
from benchmarks._tower_shapes import CLIPS, NAMES, checkpoint, inputs_of, vision_sizes
from benchmarks._towers import LOW, WAYS, Subject, times_faster
from benchmarks.graphs import HEADS, Row, line
from stages.models.inspection import describe
from tests.support.families import hf

MIB = 1 << 20
LAYERS = {"b32": (12, 87.8e6), "l14": (24, 303.9e6)}
"""Shape → layers and parameters that are published of its tower, with its projection."""


def row(name: str, speed: float, share: float) -> Row:
    return Row(
        shape="b32",
        name=name,
        device="cpu",
        milliseconds=1234.56,
        speed=speed,
        peak=100 * MIB,
        share=share,
        files=50 * MIB,
        cosine=0.99994,
        least=0.5,
        neighbours=0.987,
    )


def test_a_row_has_a_cell_under_each_head() -> None:
    said = line(row("ONNX int8", 2.5, 0.4))
    cells = "CLIP ViT-B/32 | ONNX int8 | cpu | 1,234.6 | 2.50 | 100 | 0.40 | 50.0"
    assert said == f"| {cells} | 0.9999 | 0.5000 | 99% |"
    assert said.count("|") == HEADS.count("|") + 2


def test_a_way_that_cannot_be_had_says_why() -> None:
    said = line(
        Row(shape="demo", name="torch.compile fp32", device="cpu", cannot="no a|b compiler")
    )
    assert said == "| demo | torch.compile fp32 | cpu | not possible: no a/b compiler |"


def test_rounds_are_held_against_the_same_round_of_the_first_way() -> None:
    # The second round was slow for all: medians of either would say 4 / 4.
    took = {"torch fp32": [4.0, 40.0, 4.0], "other": [1.0, 10.0, 4.0]}
    assert times_faster(took, "other") == 4.0
    assert times_faster(took, "torch fp32") == 1.0


def test_a_gpu_gets_graphs_in_16_bit_and_a_processor_in_8() -> None:
    common: dict[str, Any] = {"graphs": {}, "route": "dual", "batch": 1, "rounds": 1, "seconds": 1}
    kinds = {
        device: [way.graphs for way in Subject(model="", device=device, **common).ways().values()]
        for device in ("cpu", "cuda:0")
    }
    assert kinds["cpu"][-2:] == ["onnx", "onnx-int8"]
    assert kinds["cuda:0"][-2:] == ["onnx", "onnx-fp16"]
    assert len(LOW) == 2 and len(kinds["cpu"]) == len(WAYS) + 1


@pytest.mark.parametrize("shape", LAYERS)
def test_towers_are_as_large_as_the_published_ones(shape: str) -> None:
    size = CLIPS[shape]
    layers, parameters = LAYERS[shape]
    with torch.device("meta"):
        tower = hf.CLIPVisionModelWithProjection(hf.CLIPVisionConfig(**vision_sizes(size)))
    assert size.layers == layers
    assert sum(weight.numel() for weight in tower.parameters()) == pytest.approx(parameters, 1e-3)


def test_a_checkpoint_has_the_size_that_is_asked_for(tmp_path: Path) -> None:
    found = describe(checkpoint(tmp_path, "l14", quick=True))
    assert (found.route, found.vision.layers) == ("dual", 2)
    assert checkpoint(tmp_path, "demo", quick=True).name == "checkpoint"


def test_batches_differ_and_are_the_same_again(tmp_path: Path) -> None:
    processor = hf.CLIPProcessor.from_pretrained(checkpoint(tmp_path, "b32", quick=True))
    first, again = (inputs_of(processor, dual=True, batch=2, count=2) for _ in range(2))
    assert [len(batch["pixel_values"]) for batch in first] == [2, 2]
    one, other = (torch.stack([b["pixel_values"] for b in batches]) for batches in (first, again))
    assert torch.equal(one, other) and not torch.equal(one[0], one[1])


def test_a_shape_that_is_not_known_fails(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        graphs.main(["--shapes", "b32,b16"])
    assert f"b16 is not known; there are {', '.join(NAMES)}" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_tiny_tower_is_computed_in_every_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--quick", "--device", "cpu", "--shapes", "b32", "--rounds", "3", "--batch", "4"]
    graphs.main([*asked, "--folder", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    heads, _, *rows = table
    assert heads == HEADS.split(" | ")
    found = {cells[1]: dict(zip(heads, cells, strict=False)) for cells in rows}
    assert list(dict.fromkeys([*WAYS, "ONNX int8"])) == sorted(
        found, key=[*WAYS, "ONNX int8"].index
    )
    for name, cells in found.items():
        if "not possible" in cells["ms a batch"]:
            assert name == "torch.compile fp32"
            continue
        assert min(float(cells[head]) for head in ("ms a batch", "x", "files MiB")) > 0
        assert int(cells["MiB"]) >= 0 and cells["on"] == "cpu"
    assert found["torch fp32"]["x"] == "1.00" and found["torch fp32"]["cosine"] == "1.0000"
    assert float(found["ONNX fp32"]["least"]) >= 0.9999
    assert 0.9 < float(found["ONNX int8"]["cosine"]) < 1
    assert not [*tmp_path.iterdir()]
