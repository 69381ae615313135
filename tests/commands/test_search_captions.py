"""`penstock search` in the words of captions, alone and beside the vectors of an index."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import penstock
from artifacts.errors import UsageError
from artifacts.index import words
from artifacts.index.writing import writing
from flows.commands.search import both, query
from flows.commands.search.query import Hit
from flows.commands.search.run_texts import RunTexts
from flows.interfaces.cli.main import main
from tests.support.builders.caption_lines import write_captions, write_lines
from tests.support.indexes import MAKER, drawn, killed_in, rows

Printed = pytest.CaptureFixture[str]
TEXTS = {
    "a red car waits": "car",
    "Eine Straße bei Nacht": "Straße",
    "Красная машина едет": "машина",
    "سيارة حمراء تقف": "حمراء",
    "東京の猫が寝ている": "猫",
    "一只狗在跑步": "狗",
    "แมวสีดำนอนอยู่": "แมว",
}
"""Caption → one of its words, which no other has."""
FILM = {"media_path": "film.mp4", "source": "in"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_captions(tmp_path / "run", TEXTS)
    return tmp_path / "run"


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """A run of one video with chunks, a summary, answers and labels."""
    out = tmp_path / "film"
    media = [{**FILM, "kind": "video", "url": "file:///in/film.mp4", "captions": 3, "content": "c"}]
    answer = {"weather": {"type": "labels", "answer": "foggy", "p": 0.9, "mass": 1.0}}
    chunks = [
        {**FILM, "start": 10.0 * n, "end": 10.0 * n + 10, "caption": text, "features": f"k{n}"}
        for n, text in enumerate(("a door opens", "a dog barks", "a dog sleeps"))
    ]
    chunks[1]["answers"] = answer
    chunks[2]["review"] = "rejected"
    times = (("arrival", 0.0, 20.0), ("rest", 20.0, 30.0))
    chapters = [{"start": start, "end": end, "text": text} for text, start, end in times]
    frames = [{"label": "beagle", "passed": True}, {"label": "poodle", "passed": False}]
    write_lines(out / "media.jsonl", media)
    write_lines(out / "captions.jsonl", chunks)
    write_lines(out / "summaries.jsonl", [{**FILM, "summary": "one day", "chapters": chapters}])
    write_lines(out / "labels/media.jsonl", media)
    write_lines(out / "labels/labels.jsonl", [{**FILM, "time": 12.5, "labels": frames}])
    return out


def found(run: Path, text: str, **options: Any) -> list[tuple[str, Any]]:
    return [(hit.caption, hit.time) for hit in penstock.search(text, run, **options)]


def test_recall_of_exact_words(run: Path) -> None:
    for caption, word in TEXTS.items():
        assert found(run, word) == [(caption, None)]


def test_every_text_of_a_run_is_found(film: Path) -> None:
    assert found(film, "door") == [("a door opens", (0.0, 10.0))]
    assert found(film, "foggy") == [("a dog barks\nweather: foggy", (10.0, 20.0))]
    assert found(film, "beagle") == [("beagle", (12.5, 12.5))]
    assert found(film, "poodle") == []
    assert found(film, "sleeps") == []
    assert found(film, "day") == [("one day", (0.0, 30.0))]
    assert found(film, "rest") == [("rest", (20.0, 30.0))]


def test_where_filters_captions(film: Path) -> None:
    where = "path = '/in/film.mp4' and time >= 10 and key = 'k1' and digest = 'c'"
    assert found(film, "a", where=where) == [("a dog barks\nweather: foggy", (10.0, 20.0))]
    assert found(film, "a", where="x0 > 1 or level = 1") == []
    with pytest.raises(UsageError, match="where cannot be read"):
        found(film, "a", where="caption = 'a'")


def test_not_excludes_captions_with_the_words(film: Path) -> None:
    assert found(film, "a", without=["dog"]) == [("a door opens", (0.0, 10.0))]


def test_command_prints_hits(film: Path, capsys: Printed, tmp_path: Path) -> None:
    options = ["--index", str(film), "--html", str(tmp_path / "page.html")]
    assert main(["search", "bark*", *options]) == 0
    line = capsys.readouterr().out
    assert "/in/film.mp4 0:10.0\u20130:20.0" in line and "a dog barks" in line
    assert "a dog barks" in (tmp_path / "page.html").read_text()
    assert main(["search", '"dog barks"', "--index", str(film), "--json"]) == 0
    (hit,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (hit["time"], hit["at"], hit["caption_time"]) == ([10.0, 20.0], 15.0, [10.0, 20.0])


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("!!!", [], "'!!!' has no words"),
        ("red", ["--not", "*"], "--not '*' has no words"),
        ("red", ["--not", "cat.jpg"], "cat.jpg: an image is searched by its vector"),
        ("cat.jpg", [], "cat.jpg: an image is searched by its vector"),
        ("red", ["--in", "vectors"], "there is no index in"),
        ("red", ["--captions", "."], "there are no captions in"),
        ("red", ["--in", "words"], "unknown --in words"),
        ("red", ["--index", "nowhere", "--in", "captions"], "there are no captions"),
        ("red", ["--index", "nowhere"], "there is no index in"),
    ],
)
def test_refusals(run: Path, text: str, options: list[str], message: str, capsys: Printed) -> None:
    assert main(["search", text, "--index", str(run), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_named_index_must_be_there(run: Path, capsys: Printed) -> None:
    captions = ["search", "car", "--captions", str(run)]
    assert main([*captions, "--index", "nowhere"]) == 2
    assert "there is no index in" in capsys.readouterr().err
    assert main(captions) == 0


def test_changed_captions_are_indexed_again(run: Path) -> None:
    texts = RunTexts(run, os.environ["PENSTOCK_STORE"], print)
    assert texts.is_current()
    write_captions(run, ["a blue boat"])
    assert not texts.is_current()
    assert found(run, "car") == []
    assert found(run, "boat") == [("a blue boat", None)]
    old = texts.find(words.query_of("car"), 10)  # its files stay open
    assert [hit.text for hit in old] == ["a red car waits"]


def test_a_damaged_line_is_named(run: Path, capsys: Printed) -> None:
    with (run / "captions.jsonl").open("a") as lines:
        lines.write('{"media_path": 5}\n')
    assert main(["search", "car", "--index", str(run)]) == 5
    error = capsys.readouterr().err
    assert "captions.jsonl cannot be read at byte" in error and "Traceback" not in error


def test_a_damaged_index_is_made_anew(run: Path) -> None:
    assert found(run, "car")
    (path,) = stored()
    path.write_bytes(b"no database")
    assert found(run, "car") == [("a red car waits", None)]


def test_a_run_folder_is_never_written_to(run: Path) -> None:
    before = sorted(run.iterdir())
    assert found(run, "car")
    assert sorted(run.iterdir()) == before


def test_a_store_that_may_only_be_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*given: object) -> None:
        raise PermissionError(13, "Permission denied", "store")

    monkeypatch.setattr("flows.commands.search.run_texts.hold", refused)
    assert found(run, "car") == [("a red car waits", None)]
    assert stored() == []


def stored() -> list[Path]:
    return [*Path(os.environ["PENSTOCK_STORE"]).glob("words/*.sqlite")]


def test_killed_builds_leave_nothing(run: Path) -> None:
    def build() -> None:
        RunTexts(run, os.environ["PENSTOCK_STORE"], print)

    def dying() -> None:
        setattr(words, "words_in", die_at(4, words.words_in))  # noqa: B010
        build()

    moment = 0
    while killed_in(moment := moment + 1, build):
        assert found(run, "car") == [("a red car waits", None)]
        write_captions(run, TEXTS)
    assert moment > 2
    write_captions(run, TEXTS)
    assert killed_in(99, dying)
    for caption, word in TEXTS.items():
        assert found(run, word) == [(caption, None)]
    assert {path.suffix for path in stored()[0].parent.iterdir()} == {".lock", ".sqlite"}


def die_at(number: int, real: Callable[[str], str]) -> Callable[[str], str]:
    left = iter(range(number))

    def call(text: str) -> str:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(text)

    return call


def test_two_writers_make_one_index(run: Path) -> None:
    write_captions(run, [f"{caption} {n}" for n in range(500) for caption in TEXTS])
    code = "import sys, penstock; print(len(penstock.search('car', sys.argv[1], top=1000)))"
    command = [sys.executable, "-c", code, str(run)]
    both_ = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in both_] == ["500", "500"]
    assert len(stored()) == 1
    assert {path.suffix for path in stored()[0].parent.iterdir()} == {".lock", ".sqlite"}


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """An index of the images of a run, in the opposite order of its captions."""
    vectors = drawn(len(TEXTS))
    with writing(tmp_path / "index", MAKER, "a test") as writer:
        writer.add([(rows(len(TEXTS)), vectors)])
    return tmp_path / "index"


@dataclass
class Drawn:
    """Gives the vector of the third row for any text."""

    def __call__(self, *given: Any) -> Any:
        return drawn(len(TEXTS))[2:3], [False]


@pytest.fixture
def vectors_of_the_third(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query, "_vectors", Drawn())


def captions_of_rows(folder: Path) -> None:
    """Write captions of the files of `rows`."""
    write_captions(folder, TEXTS)
    for name in ("media.jsonl", "captions.jsonl"):
        text = (folder / name).read_text("utf-8").replace(".png", ".jpg")
        (folder / name).write_text(text, "utf-8")


@pytest.mark.usefixtures("vectors_of_the_third")
def test_ranks_are_fused(index: Path, run: Path) -> None:
    captions_of_rows(run)
    hits = penstock.search("car", index, captions=run, top=3)
    alone = penstock.search("car", index, within="vectors", top=7)
    rank = next(hit.rank for hit in alone if hit.media_path == "0.jpg")
    assert {hit.media_path: hit.score for hit in hits}["0.jpg"] == pytest.approx(
        1 / 61 + 1 / (60 + rank), abs=1e-6
    )
    assert hits[0].media_path == "0.jpg"
    assert {hit.media_path: hit.score for hit in hits}["2.jpg"] == pytest.approx(1 / 61, abs=1e-6)
    assert [hit.rank for hit in hits] == [1, 2, 3]
    assert all(hit.caption == [*TEXTS][int(hit.media_path[0])] for hit in hits)


@pytest.mark.usefixtures("vectors_of_the_third")
def test_vectors_alone_have_captions(index: Path, run: Path) -> None:
    captions_of_rows(run)
    (hit,) = penstock.search("car", index, captions=run, within="vectors", top=1)
    assert hit.caption == [*TEXTS][2]
    assert hit.score == pytest.approx(1, abs=1e-3)
    (hit,) = penstock.search("car", index, within="vectors", top=1)
    assert hit.caption == ""
    (hit,) = penstock.search("狗", index, captions=run, within="captions")
    assert hit.media_path == "5.jpg"


def test_a_moment_is_one_hit_with_the_caption_of_its_time(film: Path) -> None:
    texts = RunTexts(film, os.environ["PENSTOCK_STORE"], print)
    moment = Hit(
        rank=1, score=0.3, media_path="film.mp4", path="/in/film.mp4", time=(11.0, 14.0), at=12.0,
        box=None, key="k", copies=0, copy_paths=(),
    )  # fmt: skip
    captions = texts.find(words.query_of("dog"), 10)
    (hit,) = both.fuse([moment], captions, 10)
    assert (hit.time, hit.caption_time) == ((11.0, 14.0), (10.0, 20.0))
    assert hit.score == pytest.approx(2 / 61, abs=1e-6)
    (door,) = texts.find(words.query_of("door"), 10)
    assert [hit.caption for hit in both.fuse([moment], [door], 10)] == ["", "a door opens"]
    assert both.with_captions([moment], texts)[0].caption.startswith("a dog barks")


def test_a_copy_and_a_path_through_a_link_have_the_captions_of_their_content(film: Path) -> None:
    texts = RunTexts(film, os.environ["PENSTOCK_STORE"], print)
    moment = Hit(
        rank=1, score=0.3, media_path="film.mp4", path="/elsewhere/film.mp4", time=(11.0, 14.0),
        at=12.0, box=None, key="k", copies=0, copy_paths=(), digest="c",
    )  # fmt: skip
    (hit,) = both.fuse([moment], texts.find(words.query_of("dog"), 10), 10)
    assert (hit.path, hit.time, hit.caption_time) == (moment.path, (11.0, 14.0), (10.0, 20.0))
    assert both.with_captions([moment], texts)[0].caption.startswith("a dog barks")
    other = replace(moment, digest="d")
    assert both.with_captions([other], texts)[0].caption == ""
    assert len(both.fuse([other], texts.find(words.query_of("dog"), 10), 10)) == 2


def test_a_condition_is_met_by_captions_that_are_not_among_the_first(run: Path) -> None:
    write_captions(run, (f"car {number}" for number in range(words.MOST_RANKED + 9)))
    last = words.MOST_RANKED + 8
    assert found(run, "car", where=f"media_path = '{last}.png'") == [(f"car {last}", None)]
