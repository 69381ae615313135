"""`penstock search --ask` on drawn films: the scene in which a thing does something comes first, no
medium is opened, and what is stored is read."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from PIL import Image

import penstock
from artifacts.errors import UsageError
from flows.commands.search.asking import (
    FilmFrames,
    HitAnswer,
    _refined,
    ask_hits,
    question_for,
)
from flows.commands.search.query import Hit
from flows.core.console.display import Display
from flows.core.options.hit_questions import AskHitsOptions
from flows.interfaces.cli.main import main
from tests.support.builders.films import Shown, Truth, what_it_does, which_thing, write_films

RIGHT = 0.3


class Place(NamedTuple):
    """Films with stored features, an index, and what they show. The films are moved away."""

    root: Path
    truth: Truth


def made(root: Path, count: int, minutes: float) -> Place:
    truth = write_films(root / "films", count, minutes)
    where = ["--model", "demo", "--store", str(root / "store"), "--quiet"]
    caption = ["--chunk", "8", "--precision", "fp32", "--out", str(root / "out")]
    assert main(["caption", str(root / "films"), *where, *caption]) == 0
    index = ["--fps", "2", "--out", str(root / "index")]
    assert main(["index", "build", str(root / "films"), *where, *index]) == 0
    (root / "films").rename(root / "away")
    return Place(root, truth)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return made(tmp_path_factory.mktemp("films"), 1, 1.0)


def words(place: Place, text: str, *more: str) -> list[str]:
    where = ["--index", str(place.root / "index"), "--store", str(place.root / "store")]
    return ["search", text, *where, "--ask", str(place.root / "out"), *more]


def asked(
    place: Place, capsys: Any, text: str, question: dict[str, object], *more: str
) -> list[dict[str, Any]]:
    capsys.readouterr()
    given = ["--questions", json.dumps(question), "--json", *more]
    assert main(words(place, text, *given)) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def overlap(hit: dict[str, Any], spans: Sequence[Shown]) -> float:
    return max((span.overlap(hit["media_path"], *hit["time"]) for span in spans), default=0.0)


def test_what_was_asked_is_read_without_a_half(
    place: Place, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    thing = next(iter(place.truth.acts))
    first = asked(place, capsys, thing, what_it_does(thing), "--label", f"{thing} moves left")
    assert [hit["rank"] for hit in first] == [*range(1, len(first) + 1)]
    assert [hit["p"] for hit in first] == sorted((hit["p"] for hit in first), reverse=True)
    assert all(0 <= hit["p"] <= hit["mass"] + 1e-3 for hit in first)

    def started(*_: Any) -> None:
        raise AssertionError("a stage was started")

    monkeypatch.setattr("flows.execution.stage_loop.StageLoop.start", started)
    label = ("--label", f"{thing} moves left")
    assert asked(place, capsys, thing, what_it_does(thing), *label) == first
    hits = penstock.search(
        thing,
        place.root / "index",
        store=place.root / "store",
        ask=place.root / "out",
        questions=json.dumps(what_it_does(thing)),
        label=f"{thing} moves left",
    )
    assert [(hit.key, hit.p, hit.mass) for hit in hits] == [
        (hit["key"], hit["p"], hit["mass"]) for hit in first
    ]
    assert hits.table().column("p").to_pylist() == [hit["p"] for hit in first]
    other = asked(place, capsys, thing, what_it_does(thing), "--label", f"{thing} stays")
    assert {hit["key"] for hit in other} == {hit["key"] for hit in first}


def test_hits_below_a_probability_are_left_out_and_the_others_are_cues(
    place: Place, capsys: Any
) -> None:
    thing, spans = max(place.truth.seen.items(), key=lambda seen: len(seen[1]))
    track = place.root / "track.vtt"
    hits = asked(place, capsys, thing, which_thing(), "--least", "0.5", "--vtt", str(track))
    assert hits and all(hit["p"] >= 0.5 and overlap(hit, spans) > 0 for hit in hits)
    text = track.read_text()
    assert text.startswith("WEBVTT\n") and text.count("-->") == len(hits)
    assert f"{thing} ({hits[0]['p']:.0%})" in text


def test_refined_borders_are_within_the_film(place: Place, capsys: Any) -> None:
    thing = max(place.truth.acts, key=lambda name: len(place.truth.acts[name]))
    hits = asked(place, capsys, thing, which_thing(), "--refine", "--top", "3")
    assert hits and all(0 <= hit["time"][0] < hit["time"][1] < 80 for hit in hits)


class Answers(dict[Any, HitAnswer]):
    """Answers to windows of a film: yes, but for those that show a frame in `no`."""

    def __init__(self, no: int = -1) -> None:
        self.no = no

    def probe(self, film: FilmFrames, first: int, last: int) -> range:
        return range(first, last)

    def make(self, items: Iterable[tuple[FilmFrames, range]]) -> None:
        self.update((probe, HitAnswer(float(self.no not in probe), 1.0)) for _, probe in items)


@pytest.mark.parametrize(
    ("lengths", "no", "span"),
    [
        ((15, 15), -1, (0, 30)),
        ((14, 16), -1, (0, 30)),
        ((3,), -1, (0, 3)),
        ((15,), 14, (0, 11)),
        ((15, 15), 16, (0, 14)),
    ],
)
def test_a_moment_goes_on_into_the_next_chunk(
    lengths: tuple[int, ...], no: int, span: tuple[int, int]
) -> None:
    tasks: list[Any] = []
    for length in lengths:
        start = tasks[-1].chunk.end if tasks else 0
        times = tuple(map(float, range(start, start + length)))
        tasks.append(SimpleNamespace(chunk=SimpleNamespace(times=times, end=start + length)))
    moment: Any = {"time": (5.0, 9.0), "at": 7.0, "media_path": "a.mp4", "path": "/a.mp4"}
    hit = Hit(rank=1, score=0.5, box=None, key="k", copies=0, copy_paths=(), **moment)
    answers: Any = Answers(no)
    yes = HitAnswer(1.0, 1.0)
    assert _refined(answers, {hit: FilmFrames(tasks)}, {hit: yes}) == {hit: span}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--questions", '{"a": {"text": "b", "score": 5}}'], "asks one question of yes or no"),
        (["--questions", '{"a": {"text": "b", "labels": ["c", "d"]}}'], "has the text 'x'"),
    ],
)
def test_a_question_that_says_nothing_of_the_text_is_refused(
    place: Place, capsys: Any, options: list[str], message: str
) -> None:
    assert main(words(place, "x", *options)) == 2
    assert message in capsys.readouterr().err


def test_an_image_is_no_text_to_ask_about(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(image := tmp_path / "car.png")
    with pytest.raises(UsageError, match=r"--ask: .*car\.png is an image"):
        ask_hits([], str(image), AskHitsOptions(ask="out"), "", Display(quiet=True))
    asked = question_for(str(image), '{"a": {"text": "Is there a car?"}}', "")
    assert asked.question.text == "Is there a car?"


def test_options_without_ask_are_refused(capsys: Any) -> None:
    assert main(["search", "x", "--least", "0.5"]) == 2
    assert "--least needs --ask" in capsys.readouterr().err
    with pytest.raises(UsageError, match="ask is empty"):
        penstock.search("x", ask="")


@pytest.mark.slow
def test_the_right_scene_of_an_action_is_first(tmp_path: Path, capsys: Any) -> None:
    place = made(tmp_path, 2, 4.0)
    first: list[bool] = []
    for thing, acts in place.truth.acts.items():
        for action, spans in acts.items() if len(acts) > 1 else ():
            label = ("--label", f"{thing} {action}", "--top", "12")
            hits = asked(place, capsys, thing, what_it_does(thing), *label)
            if any(overlap(hit, spans) >= RIGHT for hit in hits):
                first.append(overlap(hits[0], spans) >= RIGHT)
    assert sum(first) >= 0.8 * len(first), f"{sum(first)} of {len(first)}"
