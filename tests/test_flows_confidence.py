"""How sure the model was: runs say it of every caption, `--confidence` scores what was written
before, or corrected, without captioning anew, and what to correct next follows from it."""

import csv
import json
import random
import re
import shutil
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import penstock_demo
from artifacts.captions import CONFIDENCE
from artifacts.edits import Edit
from artifacts.packs import Record, RecordSet
from artifacts.store import FolderStore, prepare_store
from artifacts.tensors import pack_tree
from flows.results.report.media import captioned_media
from flows.reviewing import teaching
from flows.reviewing.captions import ReviewedCaptions
from flows.reviewing.teaching import PooledFeatures, pooled, teach_ranking
from penstock_demo import CHECKPOINT
from penstock_demo.words import COLOURS, DIRECTIONS
from stages.decode.confidence import Confidence
from tests.support.inside import run_inside
from tests.support.media import write_video
from tests.support.pipeline import Place

PLAIN = {"precision": "fp32"}


@pytest.fixture
def place(here: Path) -> Place:
    return Place(clips=here / "videos", out=here / "out", store=here / "store")


def numbers(line: dict[str, Any]) -> list[Any]:
    return [line[field] for field in CONFIDENCE]


def correct(place: Place, **texts: str) -> None:
    """Correct captions by the key of their row."""
    captions = ReviewedCaptions(place.out)
    try:
        for key, text in texts.items():
            changes = [{"of": key, "caption": text, "review": ""}]
            captions.apply({"id": key, "does": "correct", "changes": changes})
    finally:
        captions.close()


def rows_of(place: Place) -> dict[str, dict[str, Any]]:
    captions = ReviewedCaptions(place.out)
    captions.close()
    return captions.rows


def swapped(text: str, rng: random.Random) -> str:
    """The text with another colour or direction in place of one that it has."""
    found = [
        (match, words)
        for words in (COLOURS, DIRECTIONS)
        for match in re.finditer(rf"\b({'|'.join(words)})\b", text)
    ]
    match, words = rng.choice(found)
    other = rng.choice([word for word in words if word != match[0]])
    return text[: match.start()] + other + text[match.end() :]


def test_captions_of_before_and_corrections_are_scored_on_request(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as before:
        before.setattr(Confidence, "fields", lambda *_: {})
        run_inside(place, **PLAIN)
    old = place.captions()
    assert [numbers(line) for line in old] == [[None] * 3] * len(old)
    again = run_inside(place, format=("csv", "parquet"), **PLAIN)
    assert again.started == [] and place.captions() == old
    with (place.out / "captions.csv").open(newline="") as table:
        assert next(csv.DictReader(table))["margin"] == ""

    ran = run_inside(place, confidence=True, format=("csv",), **PLAIN)
    assert ran.started == ["score"]
    scored = place.captions()
    fresh = Place(clips=place.clips, out=place.out.parent / "fresh", store=place.store / "other")
    run_inside(fresh, **PLAIN)
    for line, other in zip(scored, fresh.captions(), strict=True):
        assert {**line, **dict.fromkeys(CONFIDENCE)} == {**other, **dict.fromkeys(CONFIDENCE)}
        assert numbers(line) == pytest.approx(numbers(other), abs=2e-3)
    with (place.out / "captions.csv").open(newline="") as table:
        assert float(next(csv.DictReader(table))["margin"]) == scored[0]["margin"]

    key, row = next(iter(rows_of(place).items()))
    assert numbers(row) == numbers(scored[0])
    assert captioned_media(place.out, place.out)[0][0]["captions"][0][5:8] == numbers(scored[0])
    correct(place, **{key: swapped(row["said"], random.Random(1))})
    run_inside(fresh, **PLAIN)  # the store of the other folder has no edit
    assert None not in numbers(fresh.captions()[0])
    correct(fresh, **{key: swapped(row["said"], random.Random(1))})
    for each in (place, fresh):
        run_inside(each, **PLAIN)
        assert numbers(each.captions()[0]) == [None] * 3, "nothing describes the model's text"
    ran = run_inside(place, confidence=True, prefix=">> ", **PLAIN)
    assert ran.started == ["score"]
    one, *rest = place.captions()
    assert one["margin"] < 0 < scored[0]["margin"] and one["original"]
    wrong = one["caption"].removeprefix(">> ")[one["margin_at"] :].split()[0]
    assert wrong in (*COLOURS, *DIRECTIONS) and wrong not in one["original"].split()
    assert [numbers(line) for line in rest] == [numbers(line) for line in scored[1:]]
    assert run_inside(place, confidence=True, **PLAIN).started == []


ASSISTANT = "<|im_start|>assistant\n"


def test_a_correction_is_scored_behind_the_reasoning_that_a_template_opens(tmp_path: Path) -> None:
    """It has the numbers that it has with a template that ends the reasoning itself."""
    (tmp_path / "clips").mkdir()
    write_video(tmp_path / "clips" / "a.mp4", ticks=range(25))
    options: dict[str, Any] = {"max_new_tokens": 6, "prompt": "What?", "confidence": True, **PLAIN}
    found: dict[str, list[Any]] = {}
    for name, opened in {"open": "<think>\n", "closed": "<think>\n\n</think>\n\n"}.items():
        model = tmp_path / name
        shutil.copytree(CHECKPOINT, model)
        path = model / "chat_template.jinja"
        path.write_text(path.read_text().replace(ASSISTANT, ASSISTANT + opened))
        place = Place(
            clips=tmp_path / "clips",
            out=tmp_path / f"{name}-out",
            store=tmp_path / f"{name}-store",
            model=str(model),
        )
        run_inside(place, **options)
        correct(place, **{next(iter(rows_of(place))): "A small red ball rolls left."})
        assert run_inside(place, **options).started == ["score"]
        found[name] = numbers(place.captions()[0])
    assert found["open"] == pytest.approx(found["closed"], abs=2e-3)


@pytest.mark.slow
def test_what_cannot_be_scored_is_named_and_stays_unknown(place: Place) -> None:
    run_inside(place, **PLAIN)
    lines = place.captions()
    correct(place, **{next(iter(rows_of(place))): "A large red circle."})
    for pack in (place.store / "features").rglob("*"):
        if pack.is_file():
            pack.unlink()
    ran = run_inside(place, confidence=True, **PLAIN)
    assert ran.started == [] and "1 caption could not be scored" in " ".join(ran.result.warnings)
    assert numbers(place.captions()[0]) == [None] * 3
    assert place.captions()[1:] == lines[1:]


def captions(margins: list[float | None], decided: list[int], url: str) -> Any:
    rows = {f"{at}": {"margin": margin} for at, margin in enumerate(margins)}
    edits = {f"{at}": Edit(review="accepted") for at in decided}
    chunks = {key: (f"features {key}", "", "") for key in rows}
    belief = SimpleNamespace(store=url)
    return SimpleNamespace(rows=rows, chunks=chunks, belief=belief, edits=lambda: edits)


def stored(folder: Path, vectors: np.ndarray, pack: int = 100) -> str:
    """Store features of two tokens each, in 16 bit as models have them."""
    import torch

    records = []
    for at, vector in enumerate(vectors):
        tokens = torch.tensor(np.stack([vector * 0.5, vector * 1.5]), dtype=torch.bfloat16)
        features = {"image": {"pooler_output": (tokens,)}}
        meta, payload = pack_tree({"features": features, "side": {"grid": torch.ones(9, 9)}})
        records.append(Record(key=f"features {at}", meta={"tree": meta}, payload=payload))
    prepare_store(FolderStore(folder))
    kept = RecordSet(FolderStore(folder), "features", "ab" * 32)
    for at in range(0, len(records), pack):
        kept.publish(records[at : at + pack])
    return str(folder)


def test_what_teaches_is_doubtful_and_unlike_what_was_decided(tmp_path: Path) -> None:
    kinds = np.eye(3)[[0, 0, 0, 1, 1, 2, 2]] + 0.01 * np.arange(7)[:, None]
    url = stored(tmp_path / "store", kinds)
    given = captions([0.1, 0.2, 0.3, 0.4, 0.5, 0.05, 0.15], [5], url)
    found = teach_ranking(given, PooledFeatures())
    assert found.keys[:2] == ["0", "3"], "one of each kind that was not decided"
    assert found.note == "" and found.keys[-1] == "5" and len(set(found.keys)) == 7


def test_without_features_it_is_doubt_and_says_so(tmp_path: Path) -> None:
    given = captions([0.3, None, 0.1, 0.2], [2], str(tmp_path / "none"))
    found = teach_ranking(given, PooledFeatures())
    assert found.keys == ["3", "0", "1", "2"] and "no longer in the store" in found.note
    given = captions([None, None, None], [0], "gs://elsewhere/store")
    found = teach_ranking(given, PooledFeatures())
    assert found.keys == ["1", "2", "0"] and "no margins" in found.note


def test_features_are_read_in_a_bounded_time_and_then_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = stored(tmp_path / "store", np.eye(4))
    features, keys = PooledFeatures(), [f"features {at}" for at in range(4)]
    monkeypatch.setattr(teaching, "READ_SECONDS", -1.0)
    found, note = features.of(url, keys)
    assert not found and note.startswith("4 captions not compared yet")
    monkeypatch.setattr(teaching, "READ_SECONDS", 5.0)
    assert len(features.of(url, keys)[0]) == 4
    monkeypatch.setattr(teaching, "READ_SECONDS", -1.0)
    assert len(features.of(url, keys)[0]) == 4


def test_pooled_features_are_the_mean_of_the_tokens(tmp_path: Path) -> None:
    url = stored(tmp_path / "store", np.array([[1.0, 2.0, 4.0]]))
    (record_set,) = teaching._opened(url, {"features 0"})
    found = pooled(record_set.read("features 0"))
    assert found is not None and found.tolist() == [1.0, 2.0, 4.0]
    wide = teaching.projected(np.ones(1024, np.float32))
    assert wide.shape == (teaching.WIDTH,) and 25 < np.linalg.norm(wide) < 40


FLOATS = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
"""Types of numbers in which a vision half may give its features."""


@pytest.mark.parametrize("dtype", FLOATS)
def test_features_are_pooled_in_whatever_type_they_are_stored(dtype: str) -> None:
    import torch

    tokens = torch.tensor([[1.0, 2.0, 4.0], [3.0, 4.0, 8.0]]).to(getattr(torch, dtype))
    meta, payload = pack_tree({"features": [tokens, torch.ones(9, 9, dtype=torch.int64)]})
    found = pooled(Record(key="key", meta={"tree": meta}, payload=payload))
    assert found is not None and found.tolist() == [2.0, 3.0, 6.0]


def test_features_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    url = stored(tmp_path / "store", np.eye(4))
    (record_set,) = teaching._opened(url, {"features 0"})
    record = record_set.read("features 0")
    text = json.dumps(record.meta).replace('"bfloat16"', '"float3_of_a_later_version"')
    other = Record(key="features 9", meta=json.loads(text), payload=record.payload)
    RecordSet(FolderStore(tmp_path / "store"), "features", "cd" * 32).publish([other])
    found, note = PooledFeatures().of(url, ["features 0", "features 9", "features 99"])
    assert sorted(found) == ["features 0"]
    assert note.startswith("2 captions by doubt alone: their features are no longer in the store")


def test_a_run_of_the_demo_is_ranked_by_its_features(tmp_path: Path) -> None:
    place = Place(clips=penstock_demo.CLIPS, out=tmp_path / "out", store=tmp_path / "store")
    assert place.run("--quiet").returncode == 0
    with closing(ReviewedCaptions(place.out)) as given:
        found = teach_ranking(given, PooledFeatures())
        assert sorted(found.keys) == sorted(given.rows) and found.note == ""
        most = min(given.rows.values(), key=lambda row: row["margin"])
        assert found.keys[0] == most["key"], "nothing was decided: the most doubtful is first"
