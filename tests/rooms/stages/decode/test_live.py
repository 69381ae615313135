"""Requests of a decode stage that stays: those that nobody wants any more, settings that belong to
one, and several prompts of one chunk, each of which says what it says by itself."""

import errno
import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from artifacts.disk.faults import fault_of
from artifacts.errors import CannotFit, EnvironmentFault
from artifacts.records.packs import Record, RecordSet
from penstock_demo import CHECKPOINT
from stages.decode.engines.inflight import prefill
from stages.decode.engines.inflight.engine import InflightEngine
from stages.decode.engines.inflight.prefill import prefill_row
from stages.decode.engines.inflight.scheduler import InflightScheduler
from stages.decode.engines.transformers import TransformersEngine
from stages.decode.generation import (
    STOP_VERSION,
    DecodeItem,
    DecodeJob,
    RequestSettings,
    SamplingParams,
    cut_at,
    held_back,
)
from stages.decode.json_schema import ANY_OBJECT, EMPTY_OBJECT, canonical
from stages.decode.protocol import CaptionOutput, DecodeEngine, DecodeRequest, read_features
from stages.decode.run import run
from stages.memory.oom_retry import OomRetry
from stages.process.events import NO_ROOM, CaptionProgress
from stages.process.job import parse_job
from stages.process.requests import Make, Request, RequestPipe, Withdraw, line_of_message
from tests.support.clips import PROMPTS, clips
from tests.support.waves import (
    CAPTIONS,
    FEATURES,
    OTHER,
    THIRD,
    Wave,
    answers_to,
    encoded_wave,
    events,
    folder_of,
    keys_told,
    mixed_wave,
    no_faults,
    noted,
    returned,
    told_by,
    work_sent,
)

ENGINES: dict[str, type[DecodeEngine]] = {
    "inflight": InflightEngine,
    "transformers": TransformersEngine,
}
AT_ONCE = 4


class Leaving(Request[DecodeItem]):
    """A work whose asker leaves while it is looked at for the second time."""

    looks = 1

    @property
    def is_withdrawn(self) -> bool:  # type: ignore[override]
        self.looks -= 1
        return self.looks < 0


def asked_of(wave: Wave, leaving: Sequence[int]) -> list[DecodeRequest]:
    features = wave.record_set("features", FEATURES)
    (items,) = wave.to_decode(PROMPTS)["batches"]
    kinds = [Leaving if n in leaving else Request for n in range(AT_ONCE)]
    return [
        DecodeRequest(item, read_features(features, item.features), kind(item))
        for item, kind in zip(items, kinds, strict=False)
    ]


def said_by(
    engine: str, wave: Wave, leaving: Sequence[int]
) -> tuple[dict[str, CaptionOutput], DecodeEngine]:
    """What is said of each that does not leave, by its key."""
    wave.settings |= {"engine": engine, "slots": AT_ONCE, "requests": "pipe", "for_clients": True}
    job = parse_job(DecodeJob, wave.to_decode(PROMPTS, tokens=24))
    speaker = ENGINES[engine](job)
    request = asked_of(wave, leaving)
    speaker.resolve_engine(request[-1]._replace(work=None))
    with events() as (report, _):
        oom_retry = OomRetry(report, lambda: None, no_faults())
        found = {
            one.item.key: words
            for some, text in speaker.run([request], oom_retry)
            for one, words in zip(some, text, strict=True)
            if not one.is_withdrawn
        }
    return found, speaker


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
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
    wave.settings |= {"requests": "pipe", "for_clients": True}
    speaker = TransformersEngine(parse_job(DecodeJob, wave.to_decode(PROMPTS, tokens=24)))
    asked = asked_of(wave, []), asked_of(wave, range(AT_ONCE))
    whole, left = (max(text.tokens for text in speaker.generate_batch(each)) for each in asked)
    assert left <= 5 < whole / 2


def asked(*items: DecodeItem) -> str:
    """The line by which these items are sent."""
    return line_of_message(Make(batches=[items]))


def ended_in(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys of the captions that ended."""
    return [e["key"] for e in messages if e["event"] == "CaptionProgress" and e["ended"]]


def test_a_caption_that_was_left_off_is_neither_stored_nor_told(tmp_path: Path) -> None:
    """Its words are only a part, and would answer whoever asks next."""
    wave = mixed_wave(tmp_path)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    wave.settings |= {"engine": "inflight", "slots": 2, "requests": str(pipe), "for_clients": True}
    job = wave.to_decode(PROMPTS, OTHER, tokens=24)
    (batch,) = job["batches"]
    first, second = batch[:2]
    # A report that cannot be written to for a while holds the captions where they are.
    with events() as (report, message):
        sent, text = report.send, threading.Event()

        def send(event: Any) -> None:
            if isinstance(event, CaptionProgress):
                text.set()
                withdrawn.wait(60)
            sent(event)

        withdrawn = threading.Event()
        report.send = send  # type: ignore[method-assign]
        running = threading.Thread(target=run, args=({**job, "batches": []}, report), daemon=True)
        running.start()
        with pipe.open("w", buffering=1) as lines:
            lines.write(asked(first, second))
            lines.write(line_of_message(Withdraw(keys=[second.key])))
            assert text.wait(60)
            withdrawn.set()
            lines.write(asked(first._replace(key="third")))
        running.join(60)
    ended = ended_in(message)
    assert sorted(ended) == [first.key, "third"]
    assert wave.record_set("captions", OTHER).keys() == set(ended)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_prompt_that_exceeds_the_context_fails_alone(engine: str, tmp_path: Path) -> None:
    """It comes first, so that it is the one by which the engine is tried."""
    wave, pipe = mixed_wave(tmp_path), tmp_path / "pipe"
    wave.settings |= {"engine": engine, "slots": 4, "requests": str(pipe), "for_clients": True}
    job = wave.to_decode(PROMPTS, OTHER, tokens=8)
    (batch,) = job["batches"]
    long = batch[0]._replace(prompt="Tell me what is there. " * 400)
    pipe.write_text(asked(long, *batch[1:3]))
    message = told_by(run, {**job, "batches": []})
    assert sorted(ended_in(message)) == [item.key for item in batch[1:3]]
    (failed,) = [event for event in message if event.get("kind") == "too-long"]
    assert failed["media"] == long.key
    assert "context is 2,048 tokens" in failed["message"]


@pytest.mark.parametrize("for_clients", [False, True])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_request_that_the_engine_forgets_has_an_answer_while_the_stage_waits(
    engine: str, for_clients: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forgotten by the code itself: no error, no caption."""
    wave, run_engine = mixed_wave(tmp_path), ENGINES[engine].run

    def forgetful(*given: Any) -> Any:
        for requests, outputs in run_engine(*given):
            kept = [at for at, one in enumerate(requests) if one.item.key != "caption-1"]
            yield [requests[at] for at in kept], [outputs[at] for at in kept]
            del requests, outputs

    monkeypatch.setattr(ENGINES[engine], "run", forgetful)
    wave.settings |= {"engine": engine, "slots": 2, "for_clients": for_clients}
    job = wave.to_decode(PROMPTS, OTHER, tokens=4)
    items = [DecodeItem(*item) for item in job["batches"][0][:3]]
    told = answers_to(run, job, tmp_path / "pipe", items)
    made = ended_in(told) if for_clients else keys_told(told)
    assert sorted(made) == ["caption-0", "caption-2"]
    kind = "Failed" if for_clients else "Returned"
    (answer,) = (event for event in told if event["event"] == kind)
    assert "caption-1" in (answer.get("media"), *answer.get("keys", ()))


@pytest.mark.parametrize("engine", ENGINES)
def test_captions_that_another_run_makes_first_have_an_answer_at_once(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wave, publish = mixed_wave(tmp_path), RecordSet.publish
    monkeypatch.setattr(RecordSet, "publish", lambda *given: publish(*given)[1:])
    wave.settings |= {"engine": engine, "slots": 2}
    job = wave.to_decode(PROMPTS, OTHER, tokens=4)
    items = [DecodeItem(*item) for item in job["batches"][0][:3]]
    told = answers_to(run, job, tmp_path / "pipe", items)
    assert sorted([*keys_told(told), *returned(told)]) == [item.key for item in items]
    assert returned(told)


def test_a_full_disk_is_answered_to_the_client_and_the_stage_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wave, publish = mixed_wave(tmp_path), RecordSet.publish

    def refusing(records: RecordSet, made: Sequence[Record]) -> list[str]:
        if made[0].key == "caption-1":
            full = OSError(errno.ENOSPC, "no space")
            raise fault_of(full, tmp_path) from full
        return publish(records, made)

    monkeypatch.setattr(RecordSet, "publish", refusing)
    wave.settings |= {"engine": "inflight", "slots": 2, "for_clients": True}
    job = wave.to_decode(PROMPTS, OTHER, tokens=4)
    items = [DecodeItem(*item) for item in job["batches"][0][:3]]
    told = answers_to(run, job, tmp_path / "pipe", items)
    assert sorted(ended_in(told)) == ["caption-0", "caption-2"]
    (failed,) = (event for event in told if event["event"] == "Failed")
    assert (failed["media"], failed["kind"]) == ("caption-1", NO_ROOM)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_full_disk_ends_a_stage_that_waits_for_work(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(*_: Any) -> list[str]:
        raise EnvironmentFault("the disk is full", hint="Make room")

    wave = mixed_wave(tmp_path)
    wave.settings |= {"engine": engine, "slots": 2}
    monkeypatch.setattr(RecordSet, "publish", refusing)
    with pytest.raises(EnvironmentFault, match="full"):
        work_sent(run, wave.to_decode(PROMPTS, OTHER, tokens=4), tmp_path / "pipe")


def test_a_worker_without_memory_ends_though_no_further_request_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its parent starts another for the requests that it had."""
    wave = mixed_wave(tmp_path)

    def raising(*_: Any) -> Any:
        raise CannotFit("not even single items fit into memory", hint="")

    monkeypatch.setattr(InflightScheduler, "_decode_step", raising)
    wave.settings |= {"engine": "inflight", "slots": 2, "for_clients": True}
    job = wave.to_decode(PROMPTS, OTHER, tokens=4)
    feed, ended = RequestPipe(tmp_path / "pipe"), threading.Event()
    feed.send(Make(batches=[job["batches"][0][:1]]))
    assert feed.write()

    def work() -> None:
        with pytest.raises(CannotFit), events() as (report, _):
            run({**job, "batches": [], "requests": str(feed.path)}, report)
        ended.set()

    threading.Thread(target=work, daemon=True).start()
    try:
        assert ended.wait(60), "it waits for the next request"
    finally:
        feed.close()


LIMIT = 48
PROMPT = "Describe this image in detail."
FORM = canonical(
    '{"type":"object","properties":{"kind":{"type":"string","maxLength":9}},"required":["kind"]}'
)
OTHER_FORM = canonical('{"type":"object","properties":{"round":{"type":"boolean"}}}')
NO_WORD = (
    '{"type":"object","properties":{"kind":{"type":"string","pattern":"^[^\\\\x00-\\\\U0010FFFF]$",'
    '"maxLength":2}},"required":["kind"]}'
)
"""No text has this form, which `canonical` would say."""
EITHER_ENGINE = ["transformers", pytest.param("inflight", marks=pytest.mark.slow)]


def settings(stop: tuple[str, ...] = (), limit: int = LIMIT, **generation: Any) -> str:
    params = SamplingParams(**generation)
    return RequestSettings(max_new_tokens=limit, stop=stop, generation=params).text


ASKED: Mapping[str, str] = {
    "plain": "",
    "short": settings(limit=3),
    "warm": settings(temperature=2.0, seed=5),
    "warm otherwise": settings(temperature=2.0, seed=6),
    "narrow": settings(temperature=2.0, top_p=0.3, seed=5),
    "present": settings(presence_penalty=2.0),
    "form": settings(schema=FORM),
    "other form": settings(schema=OTHER_FORM),
    "stopped": settings(stop=("e",)),
    "any form": settings(schema=ANY_OBJECT),
    "empty form": settings(schema=EMPTY_OBJECT),
}


@pytest.fixture(scope="module")
def wave(tmp_path_factory: pytest.TempPathFactory) -> Wave:
    return encoded_wave(tmp_path_factory.mktemp("store"), CHECKPOINT, clips("image", 1))


def answers(
    wave: Wave, folder: Path, engine: str, params: Mapping[str, str], prefix: str
) -> dict[str, dict[str, Any]]:
    """What a decode stage that stays tells of one picture, asked for with these settings in one
    batch."""
    batch = [
        DecodeItem(f"{prefix} {name}", "features-0", PROMPT, settings=text)
        for name, text in params.items()
    ]
    pipe = folder / f"{prefix}.lines"
    pipe.write_text(asked(*batch))
    job = wave.to_decode([PROMPT], tokens=LIMIT)
    job |= {"engine": engine, "batches": [], "requests": str(pipe), "for_clients": True, "slots": 3}
    return {
        (each.get("key") or each["media"]).removeprefix(f"{prefix} "): each
        for each in told_by(run, job)
        if each["event"] == "Failed" or (each["event"] == "CaptionProgress" and each["ended"])
    }


@pytest.mark.slow
@pytest.mark.parametrize("engine", EITHER_ENGINE)
def test_settings_of_one_batch_are_each_followed_as_alone(
    engine: str, wave: Wave, tmp_path: Path
) -> None:
    requests = {**ASKED, "nowhere": settings(schema=NO_WORD)}
    together = answers(wave, tmp_path, engine, requests, f"{engine} together")
    nowhere = together.pop("nowhere")
    assert (nowhere["event"], nowhere["kind"]) == ("Failed", "unsupported")
    captions = {name: each["caption"] for name, each in together.items()}
    for name in ("short", "warm", "present", "form", "stopped"):
        alone = answers(wave, tmp_path, engine, {name: ASKED[name]}, f"{engine} {name}")
        assert alone[name]["caption"] == captions[name]
    assert len({captions[name] for name in ("plain", "warm", "warm otherwise", "narrow")}) >= 3
    assert (together["short"]["tokens"], together["short"]["ended"]) == (3, "length")
    assert captions["plain"].startswith(captions["short"])
    assert captions["present"] != captions["plain"]
    assert list(json.loads(captions["form"])) == ["kind"]
    assert set(json.loads(captions["other form"])) <= {"round"}
    assert together["stopped"]["ended"] == "stop"
    assert captions["stopped"] == captions["plain"].split("e")[0] != ""
    whole = captions["any form"].startswith("{") and together["any form"]["ended"]
    assert whole == "length" or isinstance(json.loads(captions["any form"]), dict)
    assert (captions["empty form"], together["empty form"]["ended"]) == ("{}", "stop")
    assert all(each["prompt_tokens"] > 10 for each in together.values())
    key = f"{engine} together warm"
    assert wave.record_set("captions", CAPTIONS).meta(key)["prompt_tokens"] > 10

    long = settings(stop=(captions["plain"][5:17], "zzzz"))  # a stop of several tokens
    cut = answers(wave, tmp_path, engine, {"cut": long}, f"{engine} cut")["cut"]
    assert (cut["caption"], cut["ended"]) == (captions["plain"][:5], "stop")
    assert cut["tokens"] > 1
    spaced = captions["plain"].split()[1]  # what follows a blank
    cut = answers(wave, tmp_path, engine, {"cut": settings((spaced,))}, f"{engine} blank")["cut"]
    assert cut["caption"] == captions["plain"].split(spaced)[0]
    assert cut["caption"].endswith(" "), "the blank before a stop string is of the caption"


def test_a_text_is_cut_at_a_stop_string_and_what_may_begin_one_is_held_back() -> None:
    assert cut_at("one two three", ("three", "two")) == "one "
    assert cut_at("one two", ("four",)) == "one two"
    assert held_back("a red ci", ("circle", "x")) == 2
    assert held_back("a red", ("circle",)) == 0
    assert held_back("ab", ("abab",)) == 2
    assert held_back("anything", ()) == 0


def test_settings_are_one_text_whatever_order_they_are_given_in() -> None:
    assert settings(stop=("b", "a", "b")) == settings(stop=("a", "b"))
    assert json.loads(settings(stop=("a",)))["stop_version"] == STOP_VERSION
    assert "stop_version" not in settings(), "keys of answers without one stay"
    found = RequestSettings.from_text(ASKED["narrow"])
    assert (found.generation.top_p, found.generation.seed, found.max_new_tokens) == (0.3, 5, LIMIT)


QUESTIONS = (
    *("Describe.", "What happens in it?", "Who?"),
    "Say in one long sentence what you see, from the left to the right.",
)
SHARING = [
    *((name, "image") for name in ("qwen3_vl", "llava", "smolvlm", "gemma3")),
    *((name, "video") for name in ("qwen2_5_vl", "llava_onevision", "demo")),
]


def members(wave: Wave, prompts: Sequence[str]) -> list[DecodeItem]:
    """What is asked of every clip."""
    return [
        DecodeItem(f"{n}-{p}", f"features-{n}", prompt)
        for n, _ in wave.batches[0]
        for p, prompt in enumerate(prompts)
    ]


def captions_of(
    wave: Wave, engine: str, namespace: str, requests: list[DecodeItem], size: int = 4
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the stage says of each key, and what it notes."""
    wave.settings["engine"] = engine
    job = wave.to_decode(["?"], namespace, tokens=12)
    job["batches"] = [requests[at : at + size] for at in range(0, len(requests), size)]
    notes = noted(told_by(run, job))
    found = wave.record_set("captions", namespace)
    return {item.key: found.meta(item.key) for item in requests}, notes


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), SHARING)
def test_prompts_that_share_a_picture_say_what_each_says_alone(
    name: str, kind: str, tmp_path: Path
) -> None:
    wave = encoded_wave(tmp_path, folder_of(name), clips(kind, 3))
    request = members(wave, QUESTIONS)
    plain, _ = captions_of(wave, "transformers", CAPTIONS, request, size=1)
    shared, notes = captions_of(wave, "inflight-shared", OTHER, request)
    assert shared.keys() == plain.keys()
    assert all(shared[key]["caption"] == each["caption"] for key, each in plain.items())
    assert notes["shared_prefix"] is True


@pytest.mark.slow
def test_bytes_hang_on_the_row_alone(tmp_path: Path) -> None:
    wave = encoded_wave(tmp_path, CHECKPOINT, clips("video", 2), dtype="bfloat16")
    request = members(wave, QUESTIONS)
    whole, notes = captions_of(wave, "inflight-shared", CAPTIONS, request)
    assert notes["shared_prefix"] is True
    mixed, _ = captions_of(wave, "inflight-shared", OTHER, request[::-1], size=5)
    alone, _ = captions_of(wave, "inflight-shared", THIRD, request[5:6])
    assert mixed == whole and alone[request[5].key] == whole[request[5].key]


@pytest.mark.slow
def test_a_picture_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wave = encoded_wave(tmp_path, CHECKPOINT, clips("video", 3))
    lengths: list[int] = []

    def counting(half: Any, inputs: Any, features: Any, **options: Any) -> Any:
        row = prefill_row(half, inputs, features, **options)
        before = options.get("past_key_values")
        lengths.append(row.tokens if before is None else 0)
        return row

    monkeypatch.setattr(prefill, "prefill_row", counting)
    request = members(wave, QUESTIONS)
    shuffled = [request[at] for at in torch.randperm(len(request))]
    captions_of(wave, "inflight-shared", CAPTIONS, shuffled)
    # Once for each clip, and once for the trial, where another clip follows it.
    assert sum(length > 0 for length in lengths) in (3, 4)
    assert sum(length == 0 for length in lengths) == 2 + len(request)
