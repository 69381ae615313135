"""How sure a model was of each caption: the numbers of every engine are those of its raw logits,
and a text that is only read gets the same."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from artifacts.texts.captions import CONFIDENCE
from penstock_demo import CHECKPOINT
from stages.decode.confidence import Confidence, LogitsWatch, likeliest, offset_in, token_scores
from stages.decode.engines.inflight.scheduler import TokenSelection
from stages.decode.engines.transformers import TransformersEngine
from stages.decode.generation import DecodeItem, DecodeJob, SamplingParams
from stages.decode.prompts import prompts_for
from stages.decode.protocol import read_features
from stages.models.halves.features import Features
from stages.models.halves.generate import generate, new_tokens, prompt_in
from stages.models.halves.records import merge_blank, merge_rows
from stages.process.job import parse_job
from tests.support.clips import PROMPTS
from tests.support.waves import FEATURES, OTHER, THIRD, Wave, in_slots, mixed_wave

TOKENS = 12
CHOICES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "penalized": {"repetition_penalty": 1.4, "no_repeat_ngram": 2, "avoid": ("small",)},
    "sampled": {"temperature": 2.5, "top_k": 0},
    "begun": {"start_with": "A large"},
}
ENGINES = ("transformers", "inflight", "inflight-shared")


def spoken(wave: Wave, engine: str, choice: str, scope: str = OTHER) -> list[dict[str, Any]]:
    params = SamplingParams(**CHOICES[choice])
    wave.settings |= {"engine": engine, "generation": params.non_defaults}
    wave.decode(PROMPTS, scope, tokens=TOKENS)
    return wave.captions(scope)


def raw_numbers(wave: Wave, number: int) -> dict[str, Any]:
    """The same fields, from all raw logits of `generate` for this clip alone."""
    job = parse_job(DecodeJob, wave.to_decode(PROMPTS, tokens=TOKENS))
    engine = TransformersEngine(job)
    prompt = PROMPTS[number % len(PROMPTS)]
    item = DecodeItem(f"caption-{number}", f"features-{number}", prompt)
    row = read_features(wave.record_set("features", FEATURES), item.features)
    kwargs = engine.generate_kwargs.of(item)
    half, processor = engine.half.model, engine.processor
    options = kwargs.options(half, processor, [item])
    inputs = prompts_for(half, processor, [row], [prompt], kwargs.generation)
    features = Features(merge_rows([row]), row.needs, merge_blank([row]))
    options |= {"return_dict_in_generate": True, "output_logits": True}
    made: Any = generate(half, inputs, features, max_new_tokens=TOKENS, **options)
    tokens = new_tokens(made.sequences, prompt_in(half, inputs))[0].tolist()
    logs, margins = [], []
    for token, logits in zip(tokens, made.logits, strict=True):
        of_all = logits[0].double()
        logs.append(float(of_all.log_softmax(-1)[token]))
        others = torch.cat([of_all[:token], of_all[token + 1 :]])
        margins.append(float(of_all[token] - others.max()))
    least = min(range(len(margins)), key=margins.__getitem__)
    begun = kwargs.generation.start_with
    before = begun + processor.decode(tokens[:least], skip_special_tokens=True)
    numbers = sum(logs) / len(logs), margins[least], len(before)
    return {**dict(zip(CONFIDENCE, numbers, strict=True)), "tokens": len(tokens)}


@pytest.mark.slow
@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("engine", ENGINES)
def test_numbers_are_those_of_raw_logits(engine: str, choice: str, tmp_path: Path) -> None:
    wave = mixed_wave(tmp_path)
    found = spoken(wave, engine, choice)
    for number in (0, 3, 8):
        one, expected = found[number], raw_numbers(wave, number)
        assert one["tokens"] == expected["tokens"]
        for field in ("logprob", "margin"):
            assert one[field] == pytest.approx(expected[field], abs=2e-3)
        assert one["margin_at"] == min(expected["margin_at"], len(one["caption"]) - 1)
    if choice != "greedy":
        assert any(each["margin"] < 0 for each in found) == (choice != "begun")


def test_a_row_depends_on_no_other_row_and_not_on_how_many_there_are() -> None:
    logits = torch.randn(9, 40_000, generator=torch.Generator().manual_seed(3)) * 4
    tokens = torch.arange(9) * 7
    together = token_scores(logits, tokens)
    for row in range(9):
        alone = token_scores(logits[row : row + 1], tokens[row : row + 1])[0]
        assert torch.equal(alone, together[row])
    of_all = logits.double().log_softmax(-1).gather(1, tokens[:, None])
    assert together[:, 0].tolist() == pytest.approx(of_all[:, 0].tolist(), abs=1e-4)


def test_of_equal_logits_the_margin_is_nothing_and_the_first_is_taken() -> None:
    logits = torch.tensor([[1.0, 4.0, 4.0, 2.0]])
    for token, margin in enumerate((-3.0, 0.0, 0.0, -2.0)):
        assert float(token_scores(logits, torch.tensor([token]))[0, 1]) == margin
    assert likeliest(logits).tolist() == [1] == logits.argmax(-1).tolist()
    assert token_scores(logits.to(torch.float16), torch.tensor([1])).dtype == torch.float32


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_logits_that_are_no_numbers_give_no_fields(broken: float) -> None:
    logits = torch.tensor([[1.0, broken, 2.0]])
    assert Confidence.of(token_scores(logits, torch.tensor([1])).tolist()).fields(int) == {}
    assert Confidence.of([]).fields(int) == {}


def test_the_place_lies_in_the_caption() -> None:
    assert offset_in("red ball", "  ", "  red ball ") == 0
    assert offset_in("red ball", "  red", "  red ball ") == 3
    assert offset_in("red ball", "  red ball ", "  red ball ") == 7, (
        "its end token: the last letter"
    )
    assert offset_in("caf\u00e9", "caf\ufffd", "caf\u00e9") == 3, "half a letter"
    assert offset_in("red", "red ball. ", "red ball. A") == 2, "after a stop string"
    assert offset_in("", "", "") is None


def test_a_generate_of_another_kind_gives_nothing() -> None:
    assert LogitsWatch().confidences(torch.tensor([[4, 5]]), [2]) == [None]
    watch = LogitsWatch()
    watch(torch.tensor([[9]]), torch.zeros(1, 8))
    watch(torch.tensor([[9, 3]]), torch.zeros(1, 8))
    assert watch.confidences(torch.tensor([[4, 5]]), [2]) == [None], "other tokens than it saw"


@pytest.mark.slow
def test_captions_of_no_word_and_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wave = mixed_wave(tmp_path)
    for engine, scope in (("inflight", OTHER), ("transformers", THIRD)):
        wave.settings |= {"engine": engine}
        wave.decode(PROMPTS, scope, tokens=1)
        assert all(one["tokens"] == 1 and one["margin_at"] == 0 for one in wave.captions(scope))
    end = json.loads((CHECKPOINT / "generation_config.json").read_text())["eos_token_id"]
    ends_at_once = lambda *_: torch.tensor([end])  # noqa: E731
    monkeypatch.setattr(TokenSelection, "first", ends_at_once)
    in_slots(wave, "ff" * 32)
    for one in wave.captions("ff" * 32):
        assert (one["caption"], one["tokens"], one["margin_at"]) == ("", 1, None)
        assert one["margin"] < -1 and one["logprob"] < -1
