"""Near duplicates by vectors: planted groups, backgrounds, chains, and the extra that they need."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from artifacts import near_duplicates
from artifacts.errors import EnvironmentFault
from artifacts.near_duplicates import groups

THRESHOLD = 0.9
Vectors = NDArray[np.float32]
Numbers = NDArray[np.int64]


def unit(vectors: Vectors) -> Vectors:
    found: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return found


def beside(base: Vectors, cosine: float, seed: int) -> Vectors:
    """Vectors at this cosine to others."""
    away = np.random.default_rng(seed).standard_normal(base.shape).astype(np.float32)
    away = unit(away - np.einsum("ij,ij->i", away, base)[:, None] * base)
    return np.float32(cosine) * base + np.float32((1 - cosine**2) ** 0.5) * away


def planted(
    count: int, background: float, width: int = 64, cosine: float = 0.92
) -> tuple[Vectors, Numbers]:
    """Vectors, each tenth with two others beside it, and the first of each one's group."""
    draw = np.random.default_rng(0)
    mean = unit(draw.standard_normal((1, width)).astype(np.float32))
    found = unit(draw.standard_normal((count, width)).astype(np.float32))
    found = unit(background**0.5 * mean + (1 - background) ** 0.5 * found)
    first = np.arange(0, count // 10 * 10, 10)
    truth = np.arange(count)
    for place in (3, 7):
        found[first + place] = beside(found[first], cosine, place)
        truth[first + place] = first
    return found, truth


def agree(found: Numbers, truth: Numbers) -> tuple[float, float]:
    """Recall and precision of the rows that are with the first of their group."""
    members, joined = (np.flatnonzero(of != np.arange(len(of))) for of in (truth, found))
    recall = float(np.mean(found[members] == truth[members]))
    return recall, float(np.mean(truth[joined] == found[joined]))


@pytest.fixture
def lists(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lists for as few rows as there are here."""
    monkeypatch.setattr(near_duplicates, "EXACT_ROWS", 100)
    monkeypatch.setattr(near_duplicates, "SAMPLE", 500)
    yield


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_groups_are_found_exactly_among_few_rows(kind: type, tmp_path: Path) -> None:
    vectors, truth = planted(2000, 0.0)
    np.save(tmp_path / "embeddings.npy", (7 * vectors).astype(kind))
    found = groups(tmp_path / "embeddings.npy", THRESHOLD)
    assert found.tolist() == truth.tolist()
    assert groups((7 * vectors).astype(kind), 0.93).tolist() == list(range(2000))


def test_lists_find_what_the_exact_comparison_finds(lists: None) -> None:
    vectors, truth = planted(3000, 0.5)
    recall, precision = agree(groups(vectors.astype(np.float16), THRESHOLD), truth)
    assert recall >= 0.98 and precision == 1


@pytest.mark.slow
@pytest.mark.parametrize("width", [64, 384, 768, 1152])
@pytest.mark.parametrize("background", [0.0, 0.3, 0.7])
def test_groups_are_found_before_any_background(width: int, background: float) -> None:
    # In 64 dimensions, chance makes pairs of unlike vectors before a strong background.
    threshold = 0.9 if width > 64 else 0.9 + 0.05 * background
    vectors, truth = planted(30_000, background, width, cosine=threshold + 0.005)
    recall, precision = agree(groups(vectors.astype(np.float16), threshold), truth)
    assert recall >= 0.98 and precision >= 0.999


def test_a_chain_of_near_ones_is_one_group() -> None:
    base = unit(np.random.default_rng(1).standard_normal((50, 768)).astype(np.float32))
    second = beside(base, 0.92, 2)
    third = beside(second, 0.92, 3)
    assert np.einsum("ij,ij->i", base, third).max() < THRESHOLD
    found = groups(np.concatenate([third, second, base]), THRESHOLD)
    assert found.tolist() == list(range(50)) * 3


def test_copies_and_a_crowd_are_one_group_each(
    lists: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames of a still stretch: a group of most rows, joined while it is found."""
    monkeypatch.setattr(near_duplicates, "JOINED_PAIRS", 100)
    monkeypatch.setattr(near_duplicates, "BLOCK_ROWS", 64)
    vectors, truth = planted(1000, 0.0)
    crowd = beside(np.repeat(vectors[:1], 600, axis=0), 0.99, 5)
    copies = np.repeat(vectors[1:2], 600, axis=0)
    found = groups(np.concatenate([vectors, crowd, copies]), THRESHOLD)
    assert set(found[1000:1600]) == {0} and set(found[1600:]) == {1}
    assert np.mean(found[:1000] == truth) > 0.99


def test_what_has_no_direction_is_alone(lists: None) -> None:
    vectors, truth = planted(1000, 0.0)
    vectors[[1, 2]], vectors[[4, 5]], vectors[6, 0] = 0, np.nan, np.inf
    found = groups(vectors, THRESHOLD)
    assert found[[1, 2, 4, 5, 6]].tolist() == [1, 2, 4, 5, 6]
    assert np.mean(found == truth) > 0.99
    assert groups(np.zeros((0, 8), np.float16), THRESHOLD).tolist() == []


@pytest.mark.parametrize("package", ["faiss", "scipy"])
def test_without_the_extra_it_is_named_fails(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EnvironmentFault, match=f"need the package {package}") as raised:
        groups(planted(20, 0.0)[0], THRESHOLD)
    assert "pip install 'penstock[sift]'" in raised.value.hint
    assert "\n" not in str(raised.value)
