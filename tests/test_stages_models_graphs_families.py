"""Graphs of the towers of every family: each makes what its tower makes, also of what no export
saw, or refuses it with the reason. No family is named in the program."""

import functools
from pathlib import Path

import pytest
import torch

from artifacts.errors import UsageError
from artifacts.schema import Half
from stages.models.graphs.manifest import Graph, GraphEncoder
from stages.models.graphs.onnx_encoder import OnnxEncoder
from stages.models.halves.absent import MissingModule
from stages.process.exit_diagnosis import out_of_memory
from tests.support.dual_encoders import names
from tests.support.graph_verdict import AGREES, judge_dual_graphs, judge_graphs
from tests.support.tiny_families import FAMILIES
from tests.support.tiny_families.parts import (
    MROPE,
    NONE,
    TOKENS,
    Built,
    config_of,
    finish,
    model_of,
    patches,
    text,
)
from tests.support.tiny_families.shared import stream
from tests.support.tiny_families.verdict import UNCUT

ROOT = Path(__file__).parent.parent
NAMES = sorted({variant.partition(":")[0] for variant in FAMILIES} - UNCUT)
SAID: dict[Half, str] = {"vision": "vision", "language": "text"}
HALVES = [(name, half) for name in sorted(names()) for half in SAID]


def shallow(rows: int, video: bool) -> Built:
    """A tower with a layer that attends in windows and one that attends to all."""
    reader = text(rope_parameters=MROPE, head_dim=NONE, num_hidden_layers=1)
    tower = patches(depth=2, window_size=16, fullatt_block_indexes=[1])
    model = model_of(config_of("Qwen2_5_VL", reader, tower, **TOKENS))
    return finish(model, stream(rows, video), rows, video, types="mm_token_type_ids")


@pytest.mark.slow
def test_graphs_of_a_tower_of_pictures_agree(tmp_path: Path) -> None:
    verdict = judge_graphs("llava", tmp_path)
    assert verdict.result == AGREES and verdict.graphs == 1
    assert verdict.results["image, batch 3 again"] == AGREES, "no export saw three"


@pytest.mark.slow
def test_a_graph_takes_pictures_whose_windows_are_of_unequal_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, rows in (("shallow", 1), ("shallow:b2", 2)):
        monkeypatch.setitem(FAMILIES, name, functools.partial(shallow, rows, False))
    verdict = judge_graphs("shallow", tmp_path)
    assert verdict.result == AGREES and verdict.graphs == 1
    assert verdict.column("mixed") == AGREES


@pytest.mark.parametrize(
    ("words", "memory"),
    [
        ("Non-zero status code returned while running Split node", False),
        ("Failed to allocate memory for requested buffer of size 4096", True),
    ],
)
def test_what_a_graph_does_not_take_is_said_in_one_line(words: str, memory: bool) -> None:
    def run(_: object) -> list[torch.Tensor]:
        raise RuntimeError(words)

    graph = Graph(
        file="g.onnx", inputs={"input": [0, 2]}, fixed={}, output={"tensor": "out"}, names=("out",)
    )
    tower = GraphEncoder(
        path="towers.0", class_name="Linear", parameters=1, packed=False, graphs=(graph,)
    )
    skeleton = torch.nn.Linear(2, 2, device="meta")
    stand_in = OnnxEncoder(MissingModule(skeleton, "towers.0"), tower, [run], torch.empty(0))
    with pytest.raises(RuntimeError if memory else UsageError, match=words) as raised:
        stand_in(torch.zeros(3, 2))
    assert out_of_memory(raised.value) is memory
    if not memory:
        said = str(raised.value)
        assert "towers.0" in said and "[3, 2]" in said and "\n" not in said


def page_rows() -> dict[str, list[str]]:
    """Rows of the table: name → cells."""
    page = (ROOT / "docs" / "models.md").read_text()
    part = page.partition("\n## Graphs\n")[2]
    lines = [line for line in part.splitlines() if line.startswith("| ")][1:]
    rows = ([cell.strip() for cell in line.strip("|").split(" | ")] for line in lines)
    return {row[0]: row[1:] for row in rows}


def agreeing(cells: list[str]) -> bool:
    """Whether all that the row tells of was tried, and agrees."""
    return set(cells[2:6]) <= {AGREES, ""} and AGREES in cells and not cells[6].strip()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_graphs_of_a_family_do_as_the_page_says(name: str, tmp_path: Path) -> None:
    if "processor time" in page_rows()[name][-1]:
        pytest.skip("an export takes minutes")
    verdict = judge_graphs(name, tmp_path)
    assert not verdict.result.startswith("differs")
    assert (verdict.result == AGREES) is agreeing(page_rows()[name])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "half"), HALVES)
def test_graphs_of_a_dual_encoder_do_as_the_page_says(
    name: str, half: Half, tmp_path: Path
) -> None:
    verdict = judge_dual_graphs(name, half, tmp_path)
    assert not verdict.result.startswith("differs")
    assert (verdict.result == AGREES) is agreeing(page_rows()[f"{name}, {SAID[half]} half"])
