"""What becomes of captions that nobody wants any more, in the process that makes them."""

import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from stages.decode.engines.inflight.engine import InflightEngine
from stages.decode.engines.transformers import TransformersEngine
from stages.decode.job import DecodeItem, DecodeJob
from stages.decode.protocol import CaptionOutput, DecodeEngine, DecodeRequest
from stages.decode.run import run
from stages.decode.stored import read_features
from stages.memory.oom_retry import OomRetry
from stages.process.events import CaptionProgress
from stages.process.job import items_of, parse_job
from stages.process.live import WITHDRAWN, PipedRequest
from tests.support.clips import PROMPTS
from tests.support.waves import FEATURES, OTHER, Wave, events, mixed_wave

ENGINES: dict[str, type[DecodeEngine]] = {
    "inflight": InflightEngine,
    "transformers": TransformersEngine,
}
AT_ONCE = 4


class Leaving(PipedRequest[DecodeItem]):
    """A work whose asker leaves while it is looked at for the second time."""

    looks = 1

    @property
    def is_withdrawn(self) -> bool:  # type: ignore[override]
        self.looks -= 1
        return self.looks < 0


def asked_of(wave: Wave, leaving: Sequence[int]) -> list[DecodeRequest]:
    features = wave.record_set("features", FEATURES)
    (told,) = wave.to_decode(PROMPTS)["batches"]
    items = items_of(DecodeItem, told)[:AT_ONCE]
    return [
        DecodeRequest(
            item,
            read_features(features, item.features),
            (Leaving if n in leaving else PipedRequest)(item),
        )
        for n, item in enumerate(items)
    ]


def said_by(
    engine: str, wave: Wave, leaving: Sequence[int]
) -> tuple[dict[str, CaptionOutput], DecodeEngine]:
    """What is said of each that does not leave, by its key."""
    wave.settings |= {"engine": engine, "slots": AT_ONCE, "live": "pipe"}
    job = parse_job(DecodeJob, wave.to_decode(PROMPTS, tokens=24))
    speaker = ENGINES[engine](job)
    asked = asked_of(wave, leaving)
    speaker.resolve_engine(asked[-1]._replace(work=None))
    with events() as (report, _):
        oom_retry = OomRetry(report, lambda: None)
        found = {
            one.item.key: words
            for some, said in speaker.run([asked], oom_retry)
            for one, words in zip(some, said, strict=True)
            if not one.is_withdrawn
        }
    return found, speaker


@pytest.mark.parametrize(
    "engine", ["inflight", pytest.param("transformers", marks=pytest.mark.slow)]
)
def test_who_leaves_changes_no_word_of_the_others_and_leaves_its_slot(
    engine: str, tmp_path: Path
) -> None:
    wave = mixed_wave(tmp_path)
    whole, speaker = said_by(engine, wave, [])
    rest, _ = said_by(engine, wave, [0, 2])
    assert whole.keys() - rest.keys() == {"caption-0", "caption-2"}
    assert rest == {key: whole[key] for key in rest}
    if engine == "inflight":
        none, left = said_by(engine, wave, range(AT_ONCE))
        before, after = (each.run_stats()["row_steps"] for each in (speaker, left))
        assert none == {} and after <= 4 * AT_ONCE < before / 2


def test_a_batch_that_nobody_wants_any_more_is_ended(tmp_path: Path) -> None:
    wave = mixed_wave(tmp_path)
    wave.settings |= {"live": "pipe"}
    job = parse_job(DecodeJob, wave.to_decode(PROMPTS, tokens=24))
    speaker = TransformersEngine(job)
    asked = asked_of(wave, [])
    whole = max(said.tokens for said in speaker.generate_batch(asked))
    left = max(said.tokens for said in speaker.generate_batch(asked_of(wave, range(AT_ONCE))))
    assert left <= 5 < whole / 2


def test_a_caption_that_was_left_off_is_neither_stored_nor_told(tmp_path: Path) -> None:
    """Its words are only a part, and would answer whoever asks next."""
    wave = mixed_wave(tmp_path)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    wave.settings |= {"engine": "inflight", "slots": 2, "live": str(pipe)}
    job = wave.to_decode(PROMPTS, OTHER, tokens=24)
    (batch,) = job["batches"]
    first, second = batch[:2]
    # A report that cannot be written to for a while holds the captions where they are.
    with events() as (report, told):
        sent, said = report.send, threading.Event()

        def send(event: Any) -> None:
            if isinstance(event, CaptionProgress):
                said.set()
                withdrawn.wait(60)
            sent(event)

        withdrawn = threading.Event()
        report.send = send  # type: ignore[method-assign]
        running = threading.Thread(target=run, args=({**job, "batches": []}, report), daemon=True)
        running.start()
        with pipe.open("w", buffering=1) as lines:
            lines.write(json.dumps([first, second]) + "\n")
            lines.write(json.dumps({WITHDRAWN: [second["key"]]}) + "\n")
            assert said.wait(60)
            withdrawn.set()
            lines.write(json.dumps([first | {"key": "third"}]) + "\n")
        running.join(60)
    ended = [event["key"] for event in told if event["event"] == "words" and event["ended"]]
    assert sorted(ended) == [first["key"], "third"]
    assert wave.record_set("captions", OTHER).keys() == set(ended)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_prompt_that_exceeds_the_context_fails_alone(engine: str, tmp_path: Path) -> None:
    """It comes first, so that it is the one by which the engine is tried."""
    wave, pipe = mixed_wave(tmp_path), tmp_path / "pipe"
    wave.settings |= {"engine": engine, "slots": 4, "live": str(pipe)}
    job = wave.to_decode(PROMPTS, OTHER, tokens=8)
    (batch,) = job["batches"]
    long = batch[0] | {"prompt": "Tell me what is there. " * 400}
    pipe.write_text(json.dumps([long, *batch[1:3]]) + "\n")
    with events() as (report, told):
        run({**job, "batches": []}, report)
    ended = [event["key"] for event in told if event["event"] == "words" and event["ended"]]
    assert sorted(ended) == [member["key"] for member in batch[1:3]]
    (failed,) = [event for event in told if event.get("kind") == "too-long"]
    assert failed["media"] == long["key"]
    assert "context is 2,048 tokens" in failed["message"]
