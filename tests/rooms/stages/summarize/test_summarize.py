"""Chapters and summaries: how texts are packed, that each is read once a level and never more than
the context holds, and that what was said before is not said again."""

import contextlib
import functools
import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import UsageError
from artifacts.records.packs import RecordSet
from artifacts.records.store import FolderStore
from stages.summarize import MAX_TEXTS, SummaryItem, TimedText, clock, pack_groups
from stages.summarize.run import run
from tests.support.clips import profile_of
from tests.support.families import checkpoint
from tests.support.waves import events

CONTEXT = 400
NAMESPACE = "ab" * 32


def test_every_text_is_packed_once_and_no_group_is_too_large() -> None:
    draw = random.Random(3)
    for _ in range(300):
        room, most = draw.randint(10, 90), draw.randint(2, 9)
        counts = [draw.randint(0, room // 2) for _ in range(draw.randint(1, 60))]
        groups = pack_groups(counts, room, most)
        assert [at for group in groups for at in group] == list(range(len(counts)))
        assert all(sum(counts[at] for at in group) <= room for group in groups)
        assert all(1 <= len(group) <= most for group in groups)
        assert len(counts) == 1 or len(groups) < len(counts)


def test_groups_are_few_and_even() -> None:
    assert [len(group) for group in pack_groups([1] * 41, 1000, 20)] == [14, 14, 13]
    assert [len(group) for group in pack_groups([10, 10, 10, 10], 30, 20)] == [2, 2]
    assert pack_groups([99], 10, 20) == [range(1)]


def test_times_are_told_as_people_write_them() -> None:
    assert (clock(0), clock(65.9), clock(3600 + 61)) == ("00:00", "01:05", "1:01:01")
    assert TimedText(30, 60, " A ball\nrolls. ").line == "[00:30\u201301:00] A ball rolls."


def texts(count: int, *, changed: int = -1) -> list[tuple[float, float, str]]:
    text = [f"ball {at} rolls" + " far" * (at % 3) for at in range(count)]
    if changed >= 0:
        text[changed] = "a cat sleeps"
    return [(30.0 * at, 30.0 * (at + 1), words) for at, words in enumerate(text)]


@functools.cache
def half(family: str) -> dict[str, Any]:
    """What a job is told of the half."""
    profile = profile_of(checkpoint(family))
    extra = list(profile.language.extra_modules)
    return {"model": str(checkpoint(family)), "route": profile.route, "extra_modules": extra}


def job_of(family: str, store: Path, *media: Any, **changes: Any) -> dict[str, Any]:
    items = [SummaryItem("d" * 64, f"{at}" * 64, each) for at, each in enumerate(media)]
    job = {"half": half(family), "store": str(store), "namespace": NAMESPACE, "media": items}
    sizes = {"context": CONTEXT, "max_new_tokens": 8}
    return json.loads(json.dumps({**job, **sizes, **changes}))  # type: ignore[no-any-return]


class Died(BaseException):
    """A death of the process."""


def summarize(job: dict[str, Any], *, dies_after: int = 0) -> int:
    """How many texts were said, or until the process died after so many."""
    with events() as (report, message), contextlib.suppress(Died):
        tell, count = report.answered, itertools.count(1)

        def answered(*given: Any, **named: Any) -> None:
            tell(*given, **named)
            if next(count) == dies_after:
                raise Died

        report.answered = answered  # type: ignore[method-assign]
        run(job, report)
    return sum(event["event"] == "Answered" for event in message)


def records(store: Path) -> dict[str, dict[str, Any]]:
    found = RecordSet(FolderStore(store), "summaries", NAMESPACE)
    return {key: found.meta(key) for key in sorted(found.keys())}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_every_chunk_is_read_once_a_level_within_the_context(family: str, tmp_path: Path) -> None:
    count = MAX_TEXTS + 3
    text = summarize(job_of(family, tmp_path, texts(count)))
    found = records(tmp_path)
    summary = found.pop("0" * 64)
    below = count
    assert len(summary["levels"]) >= 2
    for level in summary["levels"]:
        assert sum(level) == below and all(level)
        below = len(level)
    assert below == 1 and text == sum(map(len, summary["levels"]))
    assert all(node["read"] + node["tokens"] <= CONTEXT for node in found.values())
    assert max(node["read"] for node in found.values()) > CONTEXT // 2
    chapters = summary["chapters"]
    assert [chapter[0] for chapter in chapters[1:]] == [chapter[1] for chapter in chapters[:-1]]
    assert (chapters[0][0], chapters[-1][1]) == (0.0, 30.0 * count)
    assert summary["tokens"] >= sum(node["tokens"] for node in found.values()) > 0


@pytest.mark.slow
def test_after_a_death_or_a_change_only_what_was_not_said_is_said(tmp_path: Path) -> None:
    job = job_of("qwen2_5_vl", tmp_path, texts(12))
    first = summarize(job, dies_after=2) + summarize(job)
    levels = records(tmp_path)["0" * 64]["levels"]
    again = job_of("qwen2_5_vl", tmp_path, texts(12, changed=11))
    again["media"][0][1] = "1" * 64
    assert first == sum(map(len, levels)) > len(levels)
    assert summarize(again) <= len(levels)
    assert summarize(again) == 0


def test_one_caption_is_summarized_too(tmp_path: Path) -> None:
    assert summarize(job_of("qwen2_5_vl", tmp_path, texts(1))) == 1
    summary = records(tmp_path)["0" * 64]
    assert summary["levels"] == [[1]] and summary["chapters"] == [[0.0, 30.0, summary["summary"]]]


def test_texts_too_long_for_the_context_are_cut_and_said_so(tmp_path: Path) -> None:
    long = [(0.0, 30.0, "ball " * 400), (30.0, 60.0, "<|image_pad|> cat"), (60.0, 90.0, "")]
    summarize(job_of("qwen2_5_vl", tmp_path, long))
    found = records(tmp_path)
    assert found["0" * 64]["cut"] == 1
    assert all(n["read"] + n["tokens"] <= CONTEXT for n in found.values() if "read" in n)


def test_what_is_asked_may_not_fill_the_context(tmp_path: Path) -> None:
    job = job_of("qwen2_5_vl", tmp_path, texts(3), asked="Why? " * 80)
    with pytest.raises(UsageError, match="there is no room for captions"):
        summarize(job)
