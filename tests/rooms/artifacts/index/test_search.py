"""Searching an index: the short way against the exact one, conditions, copies and moments; and near
duplicates by vectors: planted groups, backgrounds, chains, and the extra that they need."""

import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from artifacts.errors import EnvironmentFault, MissingPackage, UsageError
from artifacts.index import near_duplicates, search, upkeep
from artifacts.index.manifest import SearchMethod
from artifacts.index.moments import moments, single
from artifacts.index.near_duplicates import groups
from artifacts.index.search import EXACT, Query, Searcher
from artifacts.index.shard import IndexRow, bits_of, differences
from artifacts.index.upkeep import is_due, measure, note_texts
from artifacts.index.where import Condition, matching
from artifacts.index.writing import writing
from tests.support.indexes import MAKER, WIDTH, Vectors, drawn, row, rows, searcher

MANY = 3000
FEW = SearchMethod(queries=0, recall=1.0, candidates=12)


def of_clusters(count: int, seed: int, signal: float, shift: int) -> Vectors:
    """Vectors on a plane of 24 dimensions, about a mean of their own."""
    fixed, draw = np.random.default_rng(0), np.random.default_rng(seed)
    plane, centres = fixed.standard_normal((24, WIDTH)), fixed.standard_normal((100, 24))
    means = fixed.standard_normal((2, WIDTH)) * 3
    places = centres[draw.integers(0, 100, count)] + 0.5 * draw.standard_normal((count, 24))
    found: Vectors = (signal * (places @ plane) + means[shift]).astype(np.float32)
    return found


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index")
    filled(folder, rows(MANY), of_clusters(MANY, 1, 1.0, 0))
    return folder


def filled(folder: Path, given: list[IndexRow], vectors: Vectors, *gone: int) -> Searcher:
    """An index of these rows but for those at some places."""
    with writing(folder, MAKER) as writer:
        writer.add([(given, vectors)])
        writer.remove(np.array(gone, dtype=np.int64))
    return searcher(folder)


def found_in_short(request: Searcher, sort: str, signal: float, shift: int) -> float:
    """The share of the ten nearest that the short way finds."""
    found = []
    for vector in of_clusters(50, 9, signal, shift):
        query = Query(vector=vector, sort=sort)  # type: ignore[arg-type]
        exact = request.find(query, 10, EXACT)
        found.append(np.isin(exact.positions, request.find(query, 10).positions).mean())
    return float(np.mean(found))


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first pass over as few rows as there are here."""
    monkeypatch.setattr(upkeep, "FEW_ROWS", 10)
    monkeypatch.setattr(upkeep, "WIDTHS", (400,))
    monkeypatch.setattr(search, "CANDIDATES_PER_HIT", 1)


def test_the_bits_that_differ_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("artifacts.index.shard.BLOCK_ROWS", 16)
    for width in (3, 64, 72, 768, 1000):
        signs = np.random.default_rng(width).standard_normal((50, width)).astype(np.float32)
        bits = bits_of(signs)
        expected = ((signs > 0) != (signs[7] > 0)).sum(axis=1)
        assert np.array_equal(differences(bits, bits[:, 7]), expected)


def test_the_short_way_is_taken_where_it_finds_enough(index: Path, short: None) -> None:
    with writing(index) as writer:
        note_texts(writer, of_clusters(60, 3, 0.4, 1))
        assert is_due(measure(writer)) is False
    request = searcher(index)
    assert request.method("pictures").candidates == request.method("texts").candidates == 400
    for sort, shift in (("pictures", 0), ("texts", 1)):
        assert found_in_short(request, sort, 0.4, shift) >= 0.98


@pytest.mark.slow
@pytest.mark.parametrize(("signal", "better"), [(0.4, "texts"), (0.1, "pictures")])
def test_the_better_mean_is_measured(
    signal: float, better: str, index: Path, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strong ones find by their own mean; what faint ones share lies in the pictures' alone."""
    monkeypatch.setattr(upkeep, "WIDTHS", (100, 200, 400, 800, 1600, 2400))
    with writing(index) as writer:
        note_texts(writer, of_clusters(60, 3, signal, 1))
        assert measure(writer).measured["texts"].centre == better
    assert found_in_short(searcher(index), "texts", signal, 1) >= 0.95


def test_all_is_scanned_where_needed(
    tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "WIDTHS", (12,))
    with writing(tmp_path, MAKER) as writer:
        writer.add([(rows(MANY), drawn(MANY, shift=0))])  # neighbours of none
        found = measure(writer).measured["pictures"]
    assert found.candidates == 0 and found.recall < 0.99 and found.queries >= 50
    assert searcher(tmp_path).method("pictures") == EXACT


def test_texts_are_looked_for_exactly_until_some_were_seen(tmp_path: Path, short: None) -> None:
    with writing(tmp_path, MAKER) as writer:
        writer.add([(rows(MANY), of_clusters(MANY, 1, 1.0, 0))])
        measure(writer)
    request = searcher(tmp_path)
    assert request.method("pictures").candidates == 400 and request.method("texts") == EXACT
    text = of_clusters(1, 9, 0.4, 1)[0]
    assert len(request.find(Query(vector=text, sort="texts"), 10).positions) == 10


def test_an_index_is_measured_again_when_it_has_doubled(tmp_path: Path) -> None:
    for count, due in ((10, True), (19, False), (20, True)):
        with writing(tmp_path, MAKER) as writer:
            writer.add([(rows(count), drawn(count))])
            assert is_due(writer.manifest) is due
            if due:
                measure(writer)


def test_copies_are_one_hit_and_equal_scores_stand_as_they_were_added(tmp_path: Path) -> None:
    vectors = np.repeat(drawn(3), 4, axis=0)
    given = [row(n // 4 if n < 8 else n, path=f"/{n}.jpg") for n in range(12)]
    request = filled(tmp_path, given, vectors, 0)
    found = request.find(Query(vector=vectors[11]), 5).positions
    assert found[:4].tolist() == [8, 9, 10, 11]  # equal, but not of one content
    found = request.find(Query(vector=vectors[0]), 12).positions
    assert sorted(found) == [1, 4, 8, 9, 10, 11]


def test_a_picture_is_one_hit_by_its_nearest_part(tmp_path: Path) -> None:
    parts = [(0.0, 0.0, 9.0, 9.0), (9.0, 0.0, 18.0, 9.0)]
    given = [row(n, box=box, level=2) for n in range(3) for box in parts]
    vectors = drawn(6)
    request, query = filled(tmp_path, given, vectors), Query(vector=vectors[3])
    found = request.find(query, 5)
    assert found.positions[0] == 3 and len(found.positions) == 3
    assert sorted(position // 2 for position in found.positions) == [0, 1, 2]
    assert len(request.find(query, 5, parts=True).positions) == 5


def test_what_is_nearer_to_something_else_is_left_out(tmp_path: Path) -> None:
    cat, dog = np.eye(WIDTH, dtype=np.float32)[:2]
    vectors = np.stack([cat, cat + 0.5 * dog, cat + 2 * dog, dog])
    found = filled(tmp_path, rows(4), vectors).find(Query(vector=cat, without=(dog,)), 4)
    assert found.positions.tolist() == [0, 1]


def test_more_is_looked_at_when_conditions_leave_too_little(index: Path, short: None) -> None:
    request = searcher(index)
    vector = of_clusters(1, 9, 1.0, 0)[0]
    kept = np.zeros(MANY, np.bool_)
    kept[request.find(Query(vector=vector), MANY, EXACT).positions[-20:]] = True
    assert len(request.find(Query(vector=vector, kept=kept), 10, FEW).positions) == 10
    against = request.find(Query(vector=vector), 1, EXACT).positions
    without = (request.snapshot.vectors(against)[0],)
    short_way = request.find(Query(vector=vector, without=without), 10, FEW)
    exact = request.find(Query(vector=vector, without=without), 10, EXACT)
    assert len(short_way.positions) == len(exact.positions)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Searcher:
    given = [
        row(0),
        row(1, path="/in/o'clock.mp4", time=12.5),
        row(2, path="/in/Zu\u0308rich/b.mp4", time=90.0, box=(1.0, 2.0, 3.0, 4.0), level=2),
    ]
    return filled(tmp_path_factory.mktemp("mixed"), given, drawn(3))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("path like '%.mp4' and time < 60", [1]),
        ("path = 'x' OR time >= 12.5", [1, 2]),
        ("time is null", [0]),
        ("not time < 60", [2]),  # of a picture it cannot be known
        ("not (time is not null and level = 2)", [0, 1]),
        ("media_path in ('0.jpg', '2.jpg')", [0, 2]),
        ("media_path not in ('0.jpg')", [1, 2]),
        ("time not in (90)", [1]),
        ("path = '/in/o''clock.mp4'", [1]),
        ("path not like '%clock%'", [0, 2]),
        ("path like '%/Z\u00fcrich/%'", [2]),
        ("path in ('x', '/in/Zu\u0308rich/b.mp4')", [2]),
        ("x0 > -1e3 and y1<>5", [2]),
        ("level=0 or level=2 and time<1", [0, 1]),
    ],
)
def test_a_condition_chooses_rows(text: str, expected: list[int], mixed: Searcher) -> None:
    assert np.flatnonzero(matching(mixed.snapshot, Condition(text))).tolist() == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "path", "path =", "path = 3", "time = 'x'", "time like '1%'", "size > 3", "path like",
        "path = 'x", "(time > 1", "time > 1)", "time > 1 time < 2", "__import__('os')", "time in (",
        "time > 1; drop", "not " * 200 + "time > 1", "(" * 5000 + "time > 1", "time > 1 " * 9000,
        "path = \"x\"", "time is 3", "and",
    ],
)  # fmt: skip
def test_a_condition_that_is_none_fails_in_one_line(text: str) -> None:
    with pytest.raises(UsageError, match="--where") as raised:
        Condition(text)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400


def test_frames_that_stay_near_are_one_moment(tmp_path: Path) -> None:
    away, near = np.eye(WIDTH, dtype=np.float32)[:2]
    heights = [0, 0, 3, 5, 4, 0, 0, 5, 0, 0]
    video = np.stack([away + height / 5 * near for height in heights])
    given = [row(n, path="/v.mp4", time=n / 2) for n in range(len(heights))]
    with writing(tmp_path, MAKER) as writer:
        writer.add([(given[::-1], video[::-1])])  # in whatever order they came
        writer.add([([row(99)], np.stack([away + 0.9 * near]))])
        measure(writer)
    request = searcher(tmp_path)
    made = [(m.row.media_path, m.start, m.end) for m in moments(request, Query(vector=near), 3)]
    assert made == [("7.jpg", 3.5, 4.0), ("3.jpg", 1.0, 2.5), ("99.jpg", None, None)]
    by_frame = single(request, request.find(Query(vector=near), 3))
    assert [m.row.time for m in by_frame] == [3.5, 1.5, None]
    assert len(moments(request, Query(vector=near), 50)) < 11


def test_a_vector_that_is_not_made_of_numbers_is_reported(tmp_path: Path) -> None:
    filled(tmp_path, rows(40), of_clusters(40, 1, 1.0, 0))
    (path,) = tmp_path.glob("embeddings-*.f16")
    content = bytearray(path.read_bytes())
    content[2 * WIDTH : 2 * WIDTH + 8] = b"\xff" * 8
    path.write_bytes(content)
    with pytest.raises(EnvironmentFault, match="is damaged: a vector is not made of numbers"):
        searcher(tmp_path).find(Query(vector=of_clusters(1, 9, 1.0, 0)[0], sort="pictures"), 3)


THRESHOLD = 0.9
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
def lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists for as few rows as there are here."""
    monkeypatch.setattr(near_duplicates, "EXACT_ROWS", 100)
    monkeypatch.setattr(near_duplicates, "SAMPLE", 500)


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_groups_are_found_exactly_among_few_rows(kind: type) -> None:
    vectors, truth = planted(2000, 0.0)
    assert groups((7 * vectors).astype(kind), THRESHOLD).tolist() == truth.tolist()
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


def test_of_a_chain_of_near_ones_the_first_takes_those_near_to_it_alone() -> None:
    base = unit(np.random.default_rng(1).standard_normal((50, 768)).astype(np.float32))
    second = beside(base, 0.92, 2)
    third = beside(second, 0.92, 3)
    assert np.einsum("ij,ij->i", base, third).max() < THRESHOLD
    first = list(range(50))
    ends = groups(np.concatenate([third, second, base]), THRESHOLD)
    assert ends.tolist() == first * 2 + list(range(100, 150))
    assert groups(np.concatenate([second, third, base]), THRESHOLD).tolist() == first * 3


@pytest.mark.parametrize("most", [1 << 25, 1000, 10])
def test_groups_are_those_of_one_row_after_another(
    lists: None, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """A path of a walk, where each row is near to hundreds: too many pairs to be kept at once."""
    monkeypatch.setattr(near_duplicates, "EXACT_ROWS", 1 << 14)
    monkeypatch.setattr(near_duplicates, "JOINED_PAIRS", 100)
    monkeypatch.setattr(near_duplicates, "MOST_PAIRS", most)
    steps = np.random.default_rng(4).standard_normal((800, 32)).astype(np.float32)
    rows = unit(np.cumsum(steps, axis=0)).astype(np.float16)
    cosines = rows.astype(np.float32) @ rows.astype(np.float32).T
    expected = np.full(800, -1)
    for first in range(800):
        if expected[first] < 0:
            expected[(expected < 0) & ((cosines[first] >= 0.9) | (np.arange(800) == first))] = first
    assert np.mean(groups(rows, 0.9) == expected) > 0.99  # cosines at the threshold are rounded
    assert len(set(expected.tolist())) > 10


@pytest.mark.slow
def test_copies_and_a_crowd_are_a_group_each(lists: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames of a still stretch: a group of most rows, whose pairs are joined as they are found."""
    monkeypatch.setattr(near_duplicates, "JOINED_PAIRS", 100)
    monkeypatch.setattr(near_duplicates, "BLOCK_ROWS", 64)
    vectors, truth = planted(1000, 0.0)
    crowd = beside(np.repeat(vectors[:1], 600, axis=0), 0.99, 5)
    copies = np.repeat(vectors[1:2], 600, axis=0)
    found = groups(np.concatenate([vectors, crowd, copies]), THRESHOLD)
    # A pair that no list shows is missed: two of these 600.
    assert np.mean(found[1000:1600] == 0) > 0.99 and set(found[1600:]) == {1}
    assert np.mean(found[:1000] == truth) > 0.99


def test_what_has_no_direction_is_alone(lists: None) -> None:
    vectors, truth = planted(1000, 0.0)
    vectors[[1, 2]], vectors[[4, 5]], vectors[6, 0] = 0, np.nan, np.inf
    found = groups(vectors, THRESHOLD)
    assert found[[1, 2, 4, 5, 6]].tolist() == [1, 2, 4, 5, 6]
    assert np.mean(found == truth) > 0.99
    assert groups(np.zeros((0, 8), np.float16), THRESHOLD).tolist() == []


@pytest.mark.parametrize("module", ["faiss", "scipy"])
def test_without_the_extra_it_is_named_fails(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingPackage, match=f"needs the package {module}") as raised:
        groups(planted(20, 0.0)[0], THRESHOLD)
    assert "pip install 'penstock[sift]'" in raised.value.hint
    assert "\n" not in str(raised.value)


def test_a_hit_of_a_vector_that_is_no_unit_is_refused_with_its_name(tmp_path: Path) -> None:
    vectors = drawn(40)
    filled(tmp_path, rows(40), vectors)
    (path,) = tmp_path.glob("embeddings-*.f16")
    stored = np.memmap(path, np.float16, "r+").reshape(-1, WIDTH)
    assert searcher(tmp_path).find(Query(vector=vectors[7]), 3).positions[0] == 7
    bits = stored[7, :1].view(np.uint16)
    bits ^= 1 << 14  # of the exponent
    with pytest.raises(EnvironmentFault, match=r"the vector of 7\.jpg has the length") as error:
        searcher(tmp_path).find(Query(vector=vectors[7]), 3)
    assert "index verify" in error.value.hint
