"""Killed while it asks several things, with chance, in a form and with a summary: the same command
ends with the bytes of an undisturbed run."""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from penstock_demo.clips import write_clips
from tests.support.pipeline import Place, kill_at, read_lines

CLIPS = 8
PROMPTS = ("--prompts", "long=Describe this video in detail.", "--prompts", "short=What is it?")
CHANCE = ("--temperature", "0.9", "--seed", "5", "--retry-loops")
FORM = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "blue", "green"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 9},
        "things": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 3},
    },
    "required": ["colour", "count", "things"],
}
ALL = "prompts, form and summary"
CHAIN = "chain"
Run = Callable[[str], tuple[Place, tuple[str, ...]]]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that nobody disturbs, and its options."""
    folder = tmp_path_factory.mktemp("asked")
    write_clips(folder / "clips", CLIPS, seed=11)
    (folder / "form.json").write_text(json.dumps(FORM))

    @functools.cache
    def run(asked: str) -> tuple[Place, tuple[str, ...]]:
        options: tuple[str, ...] = (*PROMPTS, *CHANCE, "--batch-size", "4")
        if asked == CHAIN:
            options = ("--prompt", "Before: [{previous}] And now?", *CHANCE, "--chunk", "2")
        if asked == ALL:
            options = (*options, "--schema", str(folder / "form.json"), "--summary")
            options = (*options, "--chunk", "3", "--max-new-tokens", "64")
        root = folder / asked.partition(",")[0]
        place = Place(clips=folder / "clips", out=root / "out", store=root / "store")
        done = place.run(*options)
        assert done.returncode == 0, done.stderr
        return place, options

    return run


def moments() -> Sequence[object]:
    """(what is asked, stage, item, victim), spread over the work."""
    victims = ("child", "group")
    found = [("prompts", "decode", item, victim) for item in (1, 5, 9, 13) for victim in victims]
    found += [(ALL, "decode", item, victim) for item in (2, 17, 30) for victim in victims]
    found += [(CHAIN, "decode", item, victim) for item in (3, 12, 20) for victim in victims]
    found += [(ALL, "summarize", item, victim) for item in (1, 6) for victim in victims]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("asked", "stage", "item", "victim"), moments())
def test_a_run_that_asks_several_things_resumes_to_the_same_bytes(
    undisturbed: Run, tmp_path: Path, asked: str, stage: str, item: int, victim: str
) -> None:
    whole, options = undisturbed(asked)
    place = Place(clips=whole.clips, out=tmp_path / "out", store=tmp_path / "store")
    status = kill_at(place, stage, item, victim, *options)
    assert status == (-9 if victim == "group" else 0)
    resumed = place.run(*options)
    assert resumed.returncode == 0, resumed.stderr
    for name in ("decode", "summarize"):
        assert set(place.journal(name).values()) <= {1}, f"{name} made an item twice"
    assert place.captions() == whole.captions() and len(place.captions()) >= 2 * CLIPS
    assert (asked == ALL) == (place.out / "summaries.jsonl").exists()
    if asked == ALL:
        assert read_lines(place.out / "summaries.jsonl") == read_lines(
            whole.out / "summaries.jsonl"
        )
    for kind in ("features", "captions"):
        assert place.stored(kind) == whole.stored(kind)
