"""Settings that belong to one request: in one batch with others, each says what it says alone."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from penstock_demo import CHECKPOINT
from stages.decode import run
from stages.decode.generation import SamplingParams
from stages.decode.json_schema import canonical, rest_of
from stages.decode.request_settings import RequestSettings, cut_at, held_back
from tests.support.clips import clips
from tests.support.waves import CAPTIONS, Wave, encoded_wave, events

LIMIT = 48
PROMPT = "Describe this image in detail."
FORM = canonical('{"type":"object","properties":{"kind":{"type":"string"}},"required":["kind"]}')
OTHER_FORM = canonical('{"type":"object","properties":{"round":{"type":"boolean"}}}')
NO_WORD = (
    '{"type":"object","properties":{"kind":{"type":"string","pattern":"^[^\\\\x00-\\\\U0010FFFF]$",'
    '"maxLength":2}},"required":["kind"]}'
)
"""No text has this form, which `canonical` would say."""
ENGINES = ["transformers", pytest.param("inflight", marks=pytest.mark.slow)]


def settings(stop: tuple[str, ...] = (), limit: int = LIMIT, **generation: Any) -> str:
    return RequestSettings(
        max_new_tokens=limit, stop=stop, generation=SamplingParams(**generation)
    ).text


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
}


@pytest.fixture(scope="module")
def wave(tmp_path_factory: pytest.TempPathFactory) -> Wave:
    return encoded_wave(tmp_path_factory.mktemp("store"), CHECKPOINT, clips("image", 1))


def said(
    wave: Wave, folder: Path, engine: str, asked: Mapping[str, str], prefix: str
) -> dict[str, dict[str, Any]]:
    """What a decode stage that stays tells of one picture, asked for with these settings in one
    batch."""
    batch = [
        {
            "key": f"{prefix} {name}",
            "features": "features-0",
            "prompt": PROMPT,
            **({"settings": text} if text else {}),
        }
        for name, text in asked.items()
    ]
    pipe = folder / f"{prefix}.lines"
    pipe.write_text(json.dumps(batch) + "\n")
    job = wave.to_decode([PROMPT], tokens=LIMIT)
    with events() as (report, told):
        run.run({**job, "engine": engine, "batches": [], "live": str(pipe), "slots": 3}, report)
    found = [each for each in told if each["event"] in ("words", "failure")]
    return {
        (each.get("key") or each["media"]).removeprefix(f"{prefix} "): each
        for each in found
        if each["event"] == "failure" or each["ended"]
    }


@pytest.mark.parametrize("engine", ENGINES)
def test_settings_of_one_batch_are_each_followed_as_alone(
    engine: str, wave: Wave, tmp_path: Path
) -> None:
    asked = {**ASKED, "nowhere": settings(schema=NO_WORD)}
    together = said(wave, tmp_path, engine, asked, f"{engine} together")
    nowhere = together.pop("nowhere")
    assert (nowhere["event"], nowhere["kind"]) == ("failure", "unsupported")
    assert rest_of(NO_WORD).tokens < LIMIT
    captions = {name: each["caption"] for name, each in together.items()}
    for name in ("short", "warm", "present", "form", "stopped"):
        alone = said(wave, tmp_path, engine, {name: ASKED[name]}, f"{engine} {name}")
        assert alone[name]["caption"] == captions[name]
    assert len({captions[name] for name in ("plain", "warm", "warm otherwise", "narrow")}) >= 3
    assert (together["short"]["tokens"], together["short"]["ended"]) == (3, "length")
    assert captions["plain"].startswith(captions["short"])
    assert captions["present"] != captions["plain"]
    assert list(json.loads(captions["form"])) == ["kind"]
    assert set(json.loads(captions["other form"])) <= {"round"}
    assert together["stopped"]["ended"] == "stop"
    assert captions["stopped"] == captions["plain"].split("e")[0].strip() != ""
    assert all(each["prompt_tokens"] > 10 for each in together.values())
    key = f"{engine} together warm"
    assert wave.record_set("captions", CAPTIONS).meta(key)["prompt_tokens"] > 10

    long = settings(stop=(captions["plain"][5:17], "zzzz"))  # a stop of several tokens
    cut = said(wave, tmp_path, engine, {"cut": long}, f"{engine} cut")["cut"]
    assert (cut["caption"], cut["ended"]) == (captions["plain"][:5].strip(), "stop")
    assert cut["tokens"] > 1


def test_a_text_is_cut_at_a_stop_string_and_what_may_begin_one_is_held_back() -> None:
    assert cut_at("one two three", ("three", "two")) == "one "
    assert cut_at("one two", ("four",)) == "one two"
    assert held_back("a red ci", ("circle", "x")) == 2
    assert held_back("a red", ("circle",)) == 0
    assert held_back("ab", ("abab",)) == 2
    assert held_back("anything", ()) == 0


def test_settings_are_one_text_whatever_order_they_are_given_in() -> None:
    assert settings(stop=("b", "a", "b")) == settings(stop=("a", "b"))
    found = RequestSettings.from_text(ASKED["narrow"])
    assert (found.generation.top_p, found.generation.seed, found.max_new_tokens) == (0.3, 5, LIMIT)
