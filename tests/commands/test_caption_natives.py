"""Whole runs of models that are computed by code of our own, from clips to captions and vectors,
and plans at full size."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.interfaces.cli.main import main
from stages.decode.engines.inflight.pool_shape import columns_for
from tests.support.builders.plan_cases import make_folder, plan_case
from tests.support.cogvlm2 import published
from tests.support.inside import Ran, run_inside
from tests.support.media import write_video
from tests.support.pipeline import Place, place_below

TOKENS = 12
pytestmark = pytest.mark.slow


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "clips").mkdir()
    return place_below(tmp_path, model=published())


def run_here(place: Place, **options: Any) -> Ran:
    return run_inside(place, max_new_tokens=TOKENS, **options)


def test_chunks_are_no_longer_than_what_is_seen_of_them_and_of_others_it_is_told(
    place: Place,
) -> None:
    write_video(place.clips / "long.mp4", ticks=range(0, 30 * 60, 15))
    ran = run_here(place)
    rows = place.captions()
    assert [(row["start"], row["end"]) for row in rows] == [(0, 24), (24, 48), (48, 60)]
    assert [len(row["frames"]) for row in rows] == [24, 24, 12]
    assert "are not seen" not in ran.said
    ran = run_here(place, chunk=60.0)
    assert len(place.captions()) == 1
    unseen = "of 60 in 60 s at 1 per second, 36 are not seen; --chunk 24 shows them all"
    assert f"sees 24 frames of a chunk: {unseen}" in ran.said


def test_the_published_sizes_are_planned_from_headers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_folder(plan_case("cogvlm2-llama3-caption"), tmp_path / "model")
    words = ["plan", "--model", str(model), "--store", str(tmp_path / "store"), "--json"]

    def planned(*options: str) -> dict[str, Any]:
        code = main([*words, "--precision", "bf16", *options])
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert found["fits"] == (code == 0)
        return found

    found = planned("--memory", "24GiB", "--what-fits")
    assert found["fits"] and found["route"] == "protocol"
    assert found["halves"]["vision"]["parameters"] == 4_477_269_248
    assert found["halves"]["language"]["parameters"] == 8_030_261_248
    encode, decode = found["memory"]["stages"][1:]
    assert not encode["by_dimensions"] and not decode["by_dimensions"]
    # 24 frames of 66 places and the byte or two of their numbers, then the prompt.
    assert decode["load"]["tokens"] - decode["load"]["text_tokens"] == 24 * 66
    assert decode["kv_bytes"] == 8 * columns_for(decode["load"]["tokens"] + 256) * 32 * 2 * 1024 * 2
    rows = found["what_fits_gpu"].items()
    table = {row: {size for size, held in cells.items() if held} for row, cells in rows}
    assert "24GiB" in table["native"] and "12GiB" not in table["native"]
    assert {"12GiB", "8GiB"} <= table["nf4"] and "4GiB" in table["auto"]
    assert planned("--memory", "12GiB", "--language-precision", "nf4")["fits"]
    assert not planned("--memory", "12GiB")["fits"]
