"""The benchmark of embed builds what it says, and holds every way to embed against the first."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import embed
from benchmarks.embed import Row, alike, table

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
