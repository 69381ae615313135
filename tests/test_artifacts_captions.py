import json
from dataclasses import replace
from pathlib import Path

import pytest

from artifacts.captions import Caption, write_jsonl
from artifacts.errors import EnvironmentFault


def caption(text: str, start: float = 0.0, end: float = 30.0) -> Caption:
    return Caption(
        media_path="a/clip.mp4",
        source="a",
        start=start,
        end=end,
        caption=text,
        model="demo",
        prompt="Describe.",
        precision={"vision": "fp32", "language": "fp32"},
        frames=(start, start + 0.5),
        features="ab" * 32,
        tokens=7,
        ended="stop",
    )


def test_jsonl_holds_the_contract_s_fields_in_order(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "out" / "captions.jsonl", [caption("Ein Vögelchen"), caption("b")])
    rows = [json.loads(x) for x in (tmp_path / "out" / "captions.jsonl").read_text().splitlines()]
    assert list(rows[0]) == [
        "media_path",
        "source",
        "start",
        "end",
        "caption",
        "model",
        "prompt",
        "precision",
        "frames",
        "features",
        "tokens",
        "ended",
        "warnings",
    ]
    assert [row["caption"] for row in rows] == ["Ein Vögelchen", "b"]


def test_an_output_folder_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(EnvironmentFault, match="out"):
        write_jsonl(tmp_path / "out" / "captions.jsonl", [])


def test_a_failing_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    write_jsonl(path, [caption("old")])
    before = path.read_bytes()
    bad = replace(caption("new"), tokens=object())  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        write_jsonl(path, [caption("new"), bad])
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["captions.jsonl"]
