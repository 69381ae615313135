"""What to correct next: by doubt and by distance from what was decided."""

import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import penstock_demo
from artifacts.edits import Edit
from artifacts.packs import Record, RecordSet
from artifacts.store import FolderStore
from artifacts.tensors import pack_tree
from flows.reviewing import teaching
from flows.reviewing.captions import ReviewedCaptions
from flows.reviewing.teaching import PooledFeatures, pooled, teach_ranking
from tests.support.pipeline import Place


def captions(margins: list[float | None], decided: list[int], url: str) -> Any:
    rows = {f"{at}": {"margin": margin} for at, margin in enumerate(margins)}
    edits = {f"{at}": Edit(review="accepted") for at in decided}
    chunks = {key: (f"features {key}", "", "") for key in rows}
    record = {"plan": {"store": url}}
    return SimpleNamespace(rows=rows, chunks=chunks, record=record, edits=lambda: edits)


def stored(folder: Path, vectors: np.ndarray, pack: int = 100) -> str:
    """Store features of two tokens each, in 16 bit as models have them."""
    import torch

    records = []
    for at, vector in enumerate(vectors):
        tokens = torch.tensor(np.stack([vector * 0.5, vector * 1.5]), dtype=torch.bfloat16)
        features = {"image": {"pooler_output": (tokens,)}}
        meta, payload = pack_tree({"features": features, "side": {"grid": torch.ones(9, 9)}})
        records.append(Record(key=f"features {at}", meta={"tree": meta}, payload=payload))
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
    assert found.keys == ["1", "2", "0"] and "earlier version" in found.note


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


@pytest.mark.slow
def test_fifty_thousand_captions_are_ranked_in_seconds(tmp_path: Path) -> None:
    draw, count = np.random.default_rng(0), 50_000
    url = stored(tmp_path / "store", draw.standard_normal((count, 256)), pack=1000)
    given = captions([*draw.uniform(0, 9, count)], [*range(0, count, 25)], url)
    features, seconds = PooledFeatures(), []
    for _ in range(2):
        began = time.perf_counter()
        found = teach_ranking(given, features)
        seconds.append(time.perf_counter() - began)
    assert len(set(found.keys)) == count and found.note == ""
    assert seconds[0] < 60 and seconds[1] < 20, "measured 6 and 1 on two busy cores"


def test_a_run_of_the_demo_is_ranked_by_its_features(tmp_path: Path) -> None:
    place = Place(clips=penstock_demo.CLIPS, out=tmp_path / "out", store=tmp_path / "store")
    assert place.run("--quiet").returncode == 0
    with closing(ReviewedCaptions(place.out)) as given:
        found = teach_ranking(given, PooledFeatures())
        assert sorted(found.keys) == sorted(given.rows) and found.note == ""
        most = min(given.rows.values(), key=lambda row: row["margin"])
        assert found.keys[0] == most["key"], "nothing was decided: the most doubtful is first"
