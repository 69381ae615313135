"""`--presence-penalty` lowers tokens that the caption holds, whatever its prompt holds, on both
engines."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from flows.results.summaries import OF_ANY_TEXT
from stages.decode.generation import Generation
from stages.decode.presence import PresencePenalty
from stages.models.processors.prepare import load_processor
from tests.support.clips import joint_inputs
from tests.test_stages_decode_choosing import NAMES, PROMPTS, folder_of, said, stock, wave_of

FAR = 2.0


class Lowered(LogitsProcessor):
    """The rule of OpenAI and vLLM, token by token, behind a prompt of so many tokens."""

    def __init__(self, penalty: float, prompt: int) -> None:
        self.penalty, self.prompt = penalty, prompt

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        found = scores.clone()
        for row, tokens in enumerate(ids[:, self.prompt :].tolist()):
            for token in set(tokens):
                found[row, token] -= self.penalty
        return found


def test_a_token_is_lowered_once_however_often_it_was_generated() -> None:
    penalty = PresencePenalty(1.5)
    prompt = torch.tensor([[0, 1], [2, 2]])
    scores = torch.tensor([[1.0, 2.0, 3.0, -torch.inf]]).expand(2, -1)
    assert penalty(prompt, scores).equal(scores)
    later = torch.cat([prompt, torch.tensor([[2, 2, 3], [0, 1, 0]])], 1)
    assert penalty(later, scores).tolist() == [
        [1.0, 2.0, 1.5, -torch.inf],
        [-0.5, 0.5, 3.0, -torch.inf],
    ]
    assert scores[0].tolist() == [1.0, 2.0, 3.0, -torch.inf]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("chance", [{}, {"temperature": 0.9, "seed": 5}], ids=["greedy", "chance"])
def test_both_engines_say_what_stock_says_with_the_rule_of_vllm(
    name: str, chance: dict[str, Any], tmp_path: Path
) -> None:
    folder = folder_of(name)
    wave = wave_of(folder, tmp_path)
    processor, expected, plain = load_processor(folder, trusted=False), [], []
    options = {"do_sample": True, "temperature": 0.9} if chance else {}
    for number, clip in wave.batches[0]:
        inputs = joint_inputs(processor, [clip], [PROMPTS[number % len(PROMPTS)]])
        length = inputs["input_ids"].shape[1]
        rule = LogitsProcessorList([Lowered(FAR, length)])
        lowered = {**options, "logits_processor": rule}
        expected.append(stock(folder, clip, number, lowered, chance.get("seed", 0)))
        plain.append(stock(folder, clip, number, options, chance.get("seed", 0)))
    assert chance or expected != plain
    namespaces = {"transformers": "cc" * 32, "auto": "dd" * 32, "inflight-shared": "ee" * 32}
    for engine, namespace in namespaces.items():
        assert said(wave, engine, namespace, {"presence_penalty": FAR, **chance}) == expected


def test_a_penalty_is_in_keys_of_captions_and_of_summaries_only_where_it_is_given() -> None:
    assert Generation(presence_penalty=0.0).words == Generation().words == []
    asked = Generation(presence_penalty=1.5)
    assert asked.words == [[("presence_penalty", 1.5)]]
    assert asked.told == {"presence_penalty": 1.5} and asked.limit_only_cuts
    assert not asked.by_chance and "presence_penalty" in OF_ANY_TEXT
