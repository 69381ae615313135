"""Killed at any moment, whatever is asked, the same command ends with the bytes of an undisturbed
run; a stage alone that is killed costs not even the command."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from penstock_demo.clips import write_clips
from tests.support.forms import SHORT, SIX, text_of
from tests.support.pipeline import Place, kill_at

CHANCE = ("--temperature", "0.9", "--seed", "5", "--retry-loops")
PROMPTS = ("--prompts", "long=Describe this video in detail.", "--prompts", "short=What is it?")
PLAIN = ("--batch-size", "2")
FORM = (*PLAIN, "--temperature", "1", "--format", "parquet")
ALL = (*PROMPTS, *CHANCE, "--summary", "--chunk", "3", "--max-new-tokens", "64")
ASKED: dict[str, tuple[int, tuple[str, ...]]] = {
    "few": (8, (*PLAIN, "--max-new-tokens", "8")),
    "plain": (36, PLAIN),
    "form": (16, (*FORM, "--engine", "inflight")),
    "form, transformers": (16, (*FORM, "--engine", "transformers")),
    "prompts": (8, (*PROMPTS, *CHANCE, "--batch-size", "4")),
    "prompts, form and summary": (8, (*ALL, "--batch-size", "4")),
    "chain": (8, ("--prompt", "Before: [{previous}] And now?", *CHANCE, "--chunk", "2")),
}
"""Name → how many clips there are, and the options of the command."""
STEADY = ("few", "plain", "form", "form, transformers")
"""Runs that start each stage once, so that a kill hits a stage in the middle."""
STAGES = ("frames", "encode", "decode", "summarize")
Run = Callable[[str], tuple[Place, tuple[str, ...]]]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that nobody disturbs, and its options."""

    @functools.cache
    def run(asked: str) -> tuple[Place, tuple[str, ...]]:
        folder = tmp_path_factory.mktemp("resume")
        clips, options = ASKED[asked]
        write_clips(folder / "clips", clips, seed=11)
        if "form" in asked:
            (folder / "form.json").write_text(text_of(SHORT if "summary" in asked else SIX))
            options = (*options, "--schema", str(folder / "form.json"))
        place = Place(clips=folder / "clips", out=folder / "out", store=folder / "store")
        done = place.run(*options)
        assert done.returncode == 0, done.stderr
        return place, options

    return run


def moments() -> Sequence[object]:
    """Return tuples of (run, stage, item, victim), spread over the work."""
    several = "prompts, form and summary"
    found = [("plain", "decode", 12, "server"), (several, "summarize", 6, "child")]
    for victim in ("child", "group"):
        found += [("plain", stage, at, victim) for stage in STAGES[:3] for at in (1, 12, 23)]
        found += [("prompts", "decode", at, victim) for at in (1, 13)]
        found += [(several, "decode", at, victim) for at in (2, 17)]
        found += [("chain", "decode", at, victim) for at in (3, 20)]
    found += [(name, "decode", 5, "group") for name in ("form", "form, transformers")]
    found.append((several, "summarize", 1, "group"))
    return [pytest.param(*moment, marks=pytest.mark.slow) for moment in found]


@pytest.mark.parametrize(
    ("asked", "stage", "item", "victim"), [("few", "encode", 1, "group"), *moments()]
)
def test_a_killed_run_resumes_to_the_same_bytes(
    undisturbed: Run, tmp_path: Path, asked: str, stage: str, item: int, victim: str
) -> None:
    whole, options = undisturbed(asked)
    place = Place(clips=whole.clips, out=tmp_path / "out", store=tmp_path / "store")
    status = kill_at(place, stage, item, victim, *options)
    assert status == (-9 if victim == "group" else 0)
    before = {name: place.journal(name) for name in STAGES}
    if victim != "group" and asked in STEADY:
        # Chunks are encoded while frames are cut, so both processes may have been there.
        twice = {name: s for name, s in place.stages().items() if s["processes"] == 2}
        assert stage in twice and set(twice) <= {stage, "encode"}
        assert "SIGKILL" in twice[stage]["warnings"][0]
    elif asked in STEADY:
        most = whole.journal(stage).total()
        assert item <= before[stage].total() < most, "the kill came after the stage's last item"
    resumed = place.run(*options)
    assert resumed.returncode == 0, resumed.stderr
    for name, published in before.items():
        after = place.journal(name)
        assert set(after.values()) <= {1}, f"{name} made an item twice"
        assert after.total() <= whole.journal(name).total()
        if name in place.stages() and asked in STEADY:
            assert place.stages()[name]["items"] == after.total() - published.total()
    assert place.captions() == whole.captions()
    assert not asked.startswith("form") or place.captions()[0]["fields"]
    if "summary" in asked:
        told = [(p.out / "summaries.jsonl").read_bytes() for p in (place, whole)]
        assert told[0] == told[1]
    for kind in ("media", "features", "captions"):
        assert place.stored(kind) == whole.stored(kind)
    assert place.stored("frames") == {}
