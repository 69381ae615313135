"""What answers for a longer or shorter `--max-new-tokens`, and what is told of captions that were
cut; the captions are made up."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from artifacts.packs import Record, RecordSet
from artifacts.store import FolderStore
from flows.console.display import Display
from flows.machine.launch import StageCall
from flows.options.commands import CaptionConfig
from flows.results.run_result import RunResult
from flows.running.run import caption
from stages.decode.job import DecodeJob
from stages.process.outcome import StageOutcome
from tests.support.media import write_video
from tests.support.stand_ins import Stages, config_in

LENGTHS = (3, 5, 9)
"""Tokens after which what is said of each clip ends by itself."""


class Speaking(Stages):
    """Says so many tokens of each chunk, the last of which ends it, unless it is cut before.
    Versions before did not record how a caption ended."""

    def __init__(self, *, tells: bool = True) -> None:
        super().__init__()
        self.tells = tells
        self.made: list[int] = []

    def _make(self, call: StageCall, outcome: StageOutcome) -> None:
        if call.name != "decode":
            return super()._make(call, outcome)
        assert isinstance(call.job, DecodeJob)
        limit = call.job.max_new_tokens
        record_set = RecordSet(FolderStore(Path(call.job.store)), "captions", call.job.namespace)
        for member in (m for batch in call.job.batches for m in batch):
            length = LENGTHS[int(member.prompt)]
            tokens = min(length, limit)
            said: dict[str, Any] = {"caption": "word " * tokens, "tokens": tokens}
            if self.tells:
                said["ended"] = "stop" if length <= limit else "length"
            outcome.items += len(record_set.publish([Record(key=member.key, meta=said)]))
            self.made.append(length)
        return None


@pytest.fixture
def config(tmp_path: Path) -> CaptionConfig:
    clips = tmp_path / "clips"
    clips.mkdir()
    for number in range(3):
        write_video(clips / f"{number}.mp4", ticks=range(5 + number))
    rows = [f'{{"path": "clips/{n}.mp4", "prompt": "{n}"}}\n' for n in range(3)]
    (tmp_path / "list.jsonl").write_text("".join(rows))
    config = config_in(tmp_path, clips)
    return replace(config, sources=(str(tmp_path / "list.jsonl"),))


def run(config: CaptionConfig, limit: int, stages: Speaking) -> RunResult:
    return caption(replace(config, max_new_tokens=limit), Display(quiet=True), stages.launcher)


@pytest.mark.parametrize(
    ("before", "now", "made", "tells"),
    [
        (128, 256, [], False),  # no library is captioned anew for the new default
        (4, 256, [5, 9], True),
        (4, 256, [5, 9], False),
        (256, 4, [5, 9], True),
        (256, 4, [5, 9], False),
        (7, 8, [9], True),
        (8, 7, [9], True),
        (256, 9, [], False),
    ],
)
def test_what_ended_by_itself_within_a_limit_answers_for_it(
    config: CaptionConfig, before: int, now: int, made: list[int], tells: bool
) -> None:
    run(config, before, Speaking(tells=tells))
    again = Speaking()
    result = run(config, now, again)
    assert again.made == made
    said = sum(min(length, now) for length in LENGTHS)
    text = (Path(config.out) / "captions.jsonl").read_text()
    assert text.count("word") == said
    assert text.count('"ended": "length"') == sum(length > now for length in LENGTHS)
    assert result.written.cut == sum(length > now for length in LENGTHS)


def test_an_old_record_that_has_all_its_tokens_counts_as_cut(config: CaptionConfig) -> None:
    run(config, 5, Speaking(tells=False))
    again = Speaking(tells=False)
    result = run(config, 5, again)
    assert (again.made, result.written.cut) == ([], 2)  # the one of 5 tokens may have ended there
    longer = Speaking()
    assert run(config, 6, longer).written.cut == 1
    assert longer.made == [5, 9]


def test_captions_that_were_cut_are_told_of(config: CaptionConfig) -> None:
    result = run(config, 4, Speaking())
    assert "3 captions" in result.line() and "2 cut at 4 tokens" in result.line()
    assert any("--max-new-tokens 8" in note for note in result.warnings)
    assert (result.exit_code, result.to_json()["cut"]) == (0, 2)
    whole = run(config, 256, Speaking())
    assert "cut at" not in whole.line() and not whole.warnings
