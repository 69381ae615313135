"""Files that `--min-age` leaves out of a run."""

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from artifacts.errors import UsageError
from artifacts.option_texts import parse_duration
from flows.core.job.prepare import media_of
from flows.core.job.young_files import files_by_age, is_young_at
from flows.core.options.commands import CaptionConfig
from tests.support.commands import completed
from tests.support.pipeline import PENSTOCK

NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("modified", "changed", "young"),
    [
        (NOW - 700, NOW - 700, False),
        (NOW - 500, NOW - 500, True),
        (NOW - 9e8, NOW - 500, True),  # copied with its time
        (NOW + 300, NOW + 300, True),  # by the clock of a server
        (NOW + 9e8, NOW - 700, False),  # by a camera with a wrong clock
    ],
)
def test_a_file_is_young_by_its_content_or_its_arrival(
    modified: float, changed: float, young: bool
) -> None:
    stat: Any = SimpleNamespace(st_mtime=modified, st_ctime=changed)
    assert is_young_at(NOW, 600, stat) == young


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("1.5h", 5400), (" 2 d ", 172800)]
)
def test_a_time_is_read(text: str, seconds: float) -> None:
    assert parse_duration(text, "--min-age") == seconds


@pytest.mark.parametrize("text", ["", "10 minutes", "-1", "1e3", "m", "nan", "٣m"])
def test_another_text_fails(text: str) -> None:
    with pytest.raises(UsageError, match=r"--min-age .* is not a time"):
        parse_duration(text, "--min-age")


def test_a_file_that_was_read_as_it_is_does_not_become_young(tmp_path: Path) -> None:
    media, out = tmp_path / "media", tmp_path / "out"
    media.mkdir()
    out.mkdir()
    hour_ago = time.time() - 3600
    for name in ("captioned", "changed", "new"):
        (media / f"{name}.png").write_bytes(b"picture")
        os.utime(media / f"{name}.png", (hour_ago, hour_ago))
    rows = [
        {
            "media_path": path.name,
            "source": str(media),
            "kind": "image",
            "captions": 1,
            "url": path.as_uri(),
            "content": "0",
            "bytes": path.stat().st_size,
            "modified": path.stat().st_mtime_ns,
        }
        for path in (media / "captioned.png", media / "changed.png")
    ]
    (out / "media.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.link(media / "captioned.png", tmp_path / "clip.png")  # as a data set does
    (media / "changed.png").write_bytes(b"another picture")
    config = CaptionConfig(sources=(str(media),), out=str(out), min_age=600.0)
    by_age = files_by_age(media_of(config)[0], config.min_age, config.out)
    assert [file.media_path for file in by_age.resting] == ["captioned.png"]
    assert by_age.note.startswith("left out: 2 files written in the last 10 min")


@pytest.mark.parametrize("command", ["caption", "embed", "sift", "index build", "cache rebuild"])
def test_a_run_with_only_young_files_says_so_and_succeeds(tmp_path: Path, command: str) -> None:
    (tmp_path / "young.png").write_bytes(b"half of a picture")
    words = [
        *command.split(),
        str(tmp_path),
        "--min-age",
        "10m",
        "--store",
        str(tmp_path / "store"),
    ]
    if command != "sift":
        words += ["--model", "demo"]
    if command != "cache rebuild":
        words += ["--out", str(tmp_path / "out")]
    run = completed([*PENSTOCK, *words])
    assert run.returncode == 0, run.stderr
    assert "nothing to do yet; left out: 1 file written in the last 10 min" in run.stderr
    assert "young.png" in run.stderr
