"""The benchmark of embed builds what it says, and holds every way to embed against the first."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import embed
from benchmarks.embed import EVA_CLIP_8B, TINY, Row, alike, build, table
from stages.models.inspection import describe
from tests.support.plan_cases import plan_case

MIB = 1 << 20


def row(name: str, vectors: list[list[float]]) -> Row:
    return Row(
        name=name,
        budget="3GiB",
        rung="batch 4",
        planned=110 * MIB,
        measured=100 * MIB,
        seconds=2.0,
        vectors=np.array(vectors),
    )


def test_the_tower_is_as_wide_as_the_published_one() -> None:
    tensors = plan_case("eva-clip-8b").tensors
    inside = tensors["vision_model.encoder.layers.0.mlp.fc1.weight"]
    assert inside == (EVA_CLIP_8B.inside, EVA_CLIP_8B.width)


def test_a_model_is_written_in_a_file_a_layer(tmp_path: Path) -> None:
    build(tmp_path / "model", TINY, 4)
    assert len([*(tmp_path / "model").glob("*.safetensors")]) == 4 + 1
    profile = describe(tmp_path / "model")
    assert (profile.vision.layers, profile.route, profile.dtype) == (4, "dual", "bfloat16")


def test_vectors_are_equal_or_near_without_what_all_have_in_common() -> None:
    one = row("held", [[9.0, 1.0], [9.0, -1.0]])
    other = row("nf4", [[9.0, -1.0], [9.0, 1.0]])
    assert alike(one.vectors, one.vectors) == "equal"
    assert alike(other.vectors, one.vectors) == "cosine -1.0000", "else it would be 0.98"
    heads, rule, first, second = table([one, other])
    assert heads.count("|") == rule.count("|") == first.count("|") == second.count("|")
    assert first == "| held | 3GiB | batch 4 | 110 | 100 | +10.0% | 2 | equal |"


@pytest.mark.slow
def test_a_tiny_tower_is_embedded_in_every_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    embed.main(["--quick", "--layers", "2", "--pictures", "5", "--folder", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == ["| held", "| streamed", "| nf4", "| int8"]
    assert lines[0].endswith("equal |") and lines[1].endswith("equal |")
    assert all("cosine 0.9" in line for line in lines[2:])
    assert not [*tmp_path.iterdir()]
