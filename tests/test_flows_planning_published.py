"""The plan cases against what is published of them, by hand arithmetic."""

import math
from pathlib import Path

import pytest

from stages.models.hub.checkpoint import Checkpoint
from stages.models.hub.headers import Header, read_headers
from tests.support.plan_cases import make_folder, plan_case, plan_cases


def headers_of(name: str, folder: Path) -> list[Header]:
    return read_headers(Checkpoint(name=name, folder=make_folder(plan_case(name), folder)))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("clip-vit-large-patch14", 427_616_513),
        ("cogvlm2-llama3-caption", 12_507_532_544),
        ("eva-clip-8b", 8_220_749_825),
        ("llava-1.5-7b-hf", 7_063_427_072),
        ("qwen2.5-vl-7b-instruct", 8_292_166_656),
    ],
)
def test_headers_hold_as_many_parameters_as_the_model_has(
    name: str, parameters: int, tmp_path: Path
) -> None:
    found = headers_of(name, tmp_path)
    assert sum(math.prod(header.shape) for header in found) == parameters


def test_every_case_names_where_its_dimensions_are_published() -> None:
    assert len(plan_cases()) == 5
    for name in plan_cases():
        assert "hub" in plan_case(name).source


def test_files_of_a_case_are_as_long_as_the_published_ones_and_take_no_disk(
    tmp_path: Path,
) -> None:
    """The six files of CogVLM2-Llama3-Caption, 1,029 tensors, as the hub lists them."""
    published = [4976699712, 4999803504, 4915917160, 4956242104, 4115863248, 1050673280]
    found = headers_of("cogvlm2-llama3-caption", tmp_path)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert (len(files), len(found)) == (6, 1029)
    length = sum(path.stat().st_size for path in files)
    assert length == pytest.approx(sum(published), abs=1000)  # headers, by where files begin
    assert sum(path.stat().st_blocks * 512 for path in files) < 1_000_000
