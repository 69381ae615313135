"""The samples on Prefect's page, and what a run is called there: no medium costs more than its
picture."""

import base64
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import penstock_demo
from flows.deployments import runs
from flows.deployments.pictures import MOST_BYTES, SIDE, pictures_in, pictures_of
from flows.deployments.runs import MOST_LETTERS, named_after_out
from flows.deployments.samples import MOST_LETTERS as MOST_SAID
from flows.deployments.samples import SAMPLES, _name, _said, few_of

CLIP = penstock_demo.CLIPS / "clip-01.mp4"


@pytest.mark.parametrize("count", [0, 1, 2, SAMPLES, 1000])
def test_samples_are_the_first_the_last_and_some_between(count: int, tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_text("".join(f'{{"caption": {number}}}\n' for number in range(count)))
    shown = [row["caption"] for row in few_of(path)]
    assert len(shown) == min(count, SAMPLES) and shown == sorted(set(shown))
    assert not count or (shown[0], shown[-1]) == (0, count - 1)


def test_pictures_are_small_and_those_that_cannot_be_had_are_left_out(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (900, 1200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    (tmp_path / "bad.mp4").write_text("no video")
    odd = tmp_path / "of an odd name \udcff.png"
    Image.fromarray(noise[:40]).save(odd)
    media = [(tmp_path / "bad.mp4", 1.0), (tmp_path / "noise.png", None), (CLIP, 2.0), (odd, None)]
    pictures = pictures_of(dict(enumerate(media)))
    assert set(pictures) == {1, 2, 3}
    for picture in pictures.values():
        assert len(picture) <= MOST_BYTES
        assert max(Image.open(io.BytesIO(picture)).size) <= SIDE


def test_a_process_that_dies_costs_the_pictures_that_it_did_not_make() -> None:
    picture = base64.b64encode(b"jpeg").decode()
    line = json.dumps([0, picture]).encode() + b"\n"
    assert pictures_in(line + line[: len(line) // 2]) == {0: b"jpeg"}
    assert pictures_in(b"") == pictures_of({}) == {}


def test_what_is_said_is_short_and_names_the_moment() -> None:
    clip = {"media_path": "a.mp4", "start": 30.0, "end": 60.0, "caption": "x" * 9_999, "name": "s"}
    assert _name(clip) == "a.mp4, 30.0 to 60.0 s"
    assert _said(clip) == "s: " + "x" * (MOST_SAID - 3) + "…"
    labels = [{"label": "cat", "passed": True}, {"label": "dog", "passed": False}]
    frame = {"media_path": "a.mp4", "time": 2.0, "labels": labels, "top": "cat"}
    assert (_name(frame), _said(frame)) == ("a.mp4, 2.0 s", "cat")
    assert _said({**frame, "labels": labels[1:], "top": "dog"}) == "no label (most like dog)"
    assert _name({**frame, "time": None}) == "a.mp4"


@pytest.mark.parametrize(
    ("out", "given", "name"),
    [
        ("/data/captions", "amber-otter", "/data/captions"),
        ("/data/captions", "my own name", "my own name"),
        ("a\x00b\n", "amber-otter", "a?b?"),
        ("/" + "x" * 500, "amber-otter", "…" + "x" * MOST_LETTERS),
        ("", "amber-otter", "amber-otter"),
    ],
)
@pytest.mark.parametrize("of", [dict, SimpleNamespace])
def test_a_run_is_named_after_the_folder_it_writes_to(
    of: Any, out: str, given: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = SimpleNamespace(name=given, parameters={"config": of(out=out)})
    monkeypatch.setattr(runs, "flow_run", running)
    assert named_after_out() == name
