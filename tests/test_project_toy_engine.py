"""What another engine takes: two files, and the stage runs it as it is."""

import json
from pathlib import Path
from typing import Any

import pytest

from artifacts.packs import Record
from penstock_demo import CHECKPOINT
from stages.decode.stored import read_features
from tests.support.clips import PROMPTS, clips
from tests.support.toys import inside, patched
from tests.support.waves import CAPTIONS, FEATURES, Wave, keys_told

OTHER = "dd" * 32
RUN = """
import json, sys
from stages.decode.run import run, warm
from stages.process.report import Report
job = json.loads(sys.argv[1])
warm(job)
run(job, Report(1))
"""
"""The decode stage, with its events on stdout."""


def events_of(copy: Path, job: dict[str, Any]) -> list[dict[str, Any]]:
    """What the stage tells in the copy."""
    done = inside(copy, "-c", RUN, json.dumps(job))
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_an_engine_takes_two_files_and_makes_captions(tmp_path: Path) -> None:
    copy, files = patched("engine", tmp_path)
    assert files == ["stages/decode/engines/__init__.py", "stages/decode/engines/toy.py"]
    wave = Wave(tmp_path / "store", CHECKPOINT, [clips("video", 2), clips("image", 1)])
    wave.encode()
    wave.decode(PROMPTS)
    before = wave.captions()
    kept = Record(key="caption-1", meta={"caption": "kept", "tokens": 1, "ended": "stop"})
    wave.record_set("captions", OTHER).publish([kept])

    told = events_of(copy, wave.to_decode(PROMPTS, OTHER) | {"engine": "toy"})
    first, other, last = wave.captions(OTHER)
    for stored, number in ((first, 0), (last, 2)):
        row = read_features(wave.record_set("features", FEATURES), f"features-{number}")
        words = f"{row.count.tokens} placeholders, {len(PROMPTS[number])} letters"
        assert stored["caption"] == words
        assert (stored["engine"], stored["engine_version"]) == ("toy", 1)
    assert other == kept.meta
    assert {"event": "note", "said": 2} in told
    assert keys_told(told) == ["caption-0", "caption-2"]
    assert wave.captions(CAPTIONS) == before
