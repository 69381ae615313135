"""The benchmark of graphs times every way to compute a vision half."""

from pathlib import Path

import pytest

from benchmarks import graphs
from benchmarks._towers import WAYS, times_faster
from benchmarks.graphs import HEADS


def test_rounds_are_held_against_the_same_round_of_the_first_way() -> None:
    # The second round was slow for all: medians of either would say 4 / 4.
    took = {"torch fp32": [4.0, 40.0, 4.0], "other": [1.0, 10.0, 4.0]}
    assert times_faster(took, "other") == 4.0
    assert times_faster(took, "torch fp32") == 1.0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_tiny_tower_is_computed_in_every_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    requests = ["--quick", "--device", "cpu", "--shapes", "b32", "--rounds", "3", "--batch", "4"]
    graphs.main([*requests, "--folder", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    heads, _, *rows = table
    assert heads == HEADS.split(" | ")
    found = {cells[1]: dict(zip(heads, cells, strict=False)) for cells in rows}
    assert list(dict.fromkeys([*WAYS, "ONNX int8"])) == sorted(
        found, key=[*WAYS, "ONNX int8"].index
    )
    for name, cells in found.items():
        if "not possible" in cells["ms per batch"]:
            assert name == "torch.compile fp32"
            continue
        assert min(float(cells[head]) for head in ("ms per batch", "x", "files MiB")) > 0
        assert int(cells["MiB"]) >= 0 and cells["on"] == "cpu"
    assert found["torch fp32"]["x"] == "1.00" and found["torch fp32"]["cosine"] == "1.0000"
    assert float(found["ONNX fp32"]["least"]) >= 0.9999
    assert 0.9 < float(found["ONNX int8"]["cosine"]) < 1
    assert not [*tmp_path.iterdir()]
