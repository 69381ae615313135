"""How the files of a run are divided into partitions."""

import json
from pathlib import Path

from flows.core.job.partitions import cut, partitions_of
from flows.core.media.media_file import MediaFile
from flows.core.options.commands import CaptionConfig


def test_the_cut_hangs_on_the_files_alone(tmp_path: Path) -> None:
    for number in range(7):
        (tmp_path / f"{number}.mp4").write_bytes(bytes(number))
    (tmp_path / "more.jsonl").write_text('{"path": "3.mp4", "prompt": "What?"}\n')
    sources = (str(tmp_path / "?.mp4"), str(tmp_path / "more.jsonl"), str(tmp_path / "none.mp4"))
    config = CaptionConfig(sources=sources, model="demo", out=str(tmp_path / "out"))
    first, failures = partitions_of(config, 3)
    assert [(each.files, each.bytes) for each in first] == [(3, 3), (3, 12), (2, 9)]
    assert [failure.media_path for failure in failures] == [str(tmp_path / "none.mp4")]
    assert partitions_of(config, 3)[0] == first
    assert [json.loads(line) for line in first[2].path.read_text().splitlines()] == [
        {"path": str(tmp_path / "6.mp4")},
        {"path": str(tmp_path / "3.mp4"), "prompt": "What?"},
    ]
    whole = CaptionConfig(sources=(f"@{first[2].path}",), model="demo", out=str(tmp_path / "out"))
    again, _ = partitions_of(whole)
    assert again[0].path.read_text() == first[2].path.read_text()


def test_media_that_are_large_make_a_portion_by_themselves() -> None:
    file = MediaFile(path=Path("/a"), media_path="a", source="a", kind="video")
    sizes = [5, 1, 9, 30, 2, 2]
    parts = cut([(file, size) for size in sizes], max_files=4, limit=10)
    assert [[size for _, size in part] for part in parts] == [[5, 1], [9], [30], [2, 2]]
