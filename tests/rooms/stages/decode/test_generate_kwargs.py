"""How words are chosen: every control says what stock `generate` says of one row, on both engines,
and bytes hang on the row alone."""

import copy
import re
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LogitsProcessorList

from artifacts.errors import UsageError
from flows.outputs.captions import TEXT_SETTINGS
from penstock_demo import CHECKPOINT
from stages.decode import run
from stages.decode.generate_kwargs import PresencePenalty, seed_of
from stages.decode.generation import DecodeItem, SamplingParams
from stages.decode.prompts import NGRAM, PENALTY, is_repetitive
from stages.models.processors.blank_clips import Clip
from stages.models.processors.loading import load_processor
from stages.models.processors.processor_calls import PARTS, PLAIN, write
from tests.support.clips import Lowered, clips, joint_inputs, joint_model
from tests.support.families import checkpoint
from tests.support.hostile import with_json
from tests.support.waves import CAPTIONS, OTHER, THIRD, Wave, encoded_wave, folder_of

PROMPTS = ("Describe.", "What happens in it?")
TOKENS = 12
QUICK = {("qwen2_5_vl", "together")}
CONTROLS: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "temperature": ({"temperature": 0.8, "seed": 7}, {"do_sample": True, "temperature": 0.8}),
    "top-p": ({"top_p": 0.7}, {"do_sample": True, "top_p": 0.7}),
    "top-k": ({"top_k": 5, "seed": 3}, {"do_sample": True, "top_k": 5}),
    "penalty": ({"repetition_penalty": 1.4}, {"repetition_penalty": 1.4}),
    "ngram": ({"no_repeat_ngram": 2}, {"no_repeat_ngram_size": 2}),
    "together": (
        {
            "temperature": 1.1, "repetition_penalty": 1.2, "no_repeat_ngram": 3, "top_p": 0.9,
            "presence_penalty": 1.0, "seed": 5,
        },
        {
            "do_sample": True, "temperature": 1.1, "top_p": 0.9, "lowered": 1.0,
            "repetition_penalty": 1.2, "no_repeat_ngram_size": 3,
        },
    ),
    "presence": ({"presence_penalty": 2.0}, {"lowered": 2.0}),
    "start": ({"start_with": "A big"}, {"begun": "A big"}),
}  # fmt: skip
"""Name → what is asked of us, and of stock."""
MORE = ("demo", "qwen3_vl", "llava", "llava_onevision", "smolvlm")
CONTROLS_OF_MORE = ("together", "presence")
CASES = [
    pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow)
    for case in [*product(("qwen2_5_vl", "gemma3"), CONTROLS), *product(MORE, CONTROLS_OF_MORE)]
]


def wave_of(folder: Path, store: Path, number: int = 3) -> Wave:
    return encoded_wave(store, folder, clips("image", number))


def stating(folder: Path, **stated: Any) -> Path:
    """A copy of the demo whose generation_config.json states this, too."""
    return with_json(folder, "generation_config.json", lambda old: {**old, **stated})


def captions_of(wave: Wave, engine: str, namespace: str, params: Mapping[str, Any]) -> list[str]:
    wave.settings |= {"engine": engine, "generation": SamplingParams(**params).non_defaults}
    wave.decode(PROMPTS, namespace, tokens=TOKENS)
    return [one["caption"] for one in wave.captions(namespace)]


def stock(folder: Path, clip: Clip, number: int, options: Mapping[str, Any], seed: int = 0) -> str:
    """What the whole model says of one clip, by its own `generate`."""
    processor, model = load_processor(folder, trusted=False), joint_model(folder)
    prompt = PROMPTS[number % len(PROMPTS)]
    inputs = joint_inputs(processor, [clip], [prompt])
    length = inputs["input_ids"].shape[1]
    given = {"do_sample": False, "num_beams": 1, "max_new_tokens": TOKENS, **options}
    if penalty := given.pop("lowered", 0):
        given["logits_processor"] = LogitsProcessorList([Lowered(penalty, length)])
    if begun := given.pop("begun", ""):
        ids = processor.tokenizer(begun, add_special_tokens=False, return_tensors="pt")["input_ids"]
        for key, value in inputs.items():
            if value.shape == (1, length):
                more = ids if key == "input_ids" else torch.full_like(ids, key == "attention_mask")
                inputs[key] = torch.cat([value, more.to(value.dtype)], 1)
    torch.manual_seed(seed_of(seed, DecodeItem("", f"features-{number}", prompt)))
    with torch.inference_mode():
        made = model.generate(**inputs, **given)
    (text,) = processor.batch_decode(made[:, length:], skip_special_tokens=True)
    return str(text).strip()


@pytest.mark.parametrize(("name", "control"), CASES)
def test_a_control_says_what_stock_says_of_the_row_alone(
    name: str, control: str, tmp_path: Path
) -> None:
    folder = folder_of(name)
    request, options = CONTROLS[control]
    wave = wave_of(folder, tmp_path)
    seed = request.get("seed", 0)
    expected = [stock(folder, clip, n, options, seed) for n, clip in wave.batches[0]]
    if control == "presence" and name != "demo":  # which is too sure of its words
        assert expected != [stock(folder, clip, n, {}) for n, clip in wave.batches[0]]
    engines = {"transformers": CAPTIONS, "auto": OTHER, "inflight-shared": THIRD}
    if control == "start":
        del engines["inflight-shared"]
    for engine, namespace in engines.items():
        assert captions_of(wave, engine, namespace, request) == expected, engine


@pytest.mark.slow
def test_chance_hangs_on_the_row_and_on_the_seed(tmp_path: Path) -> None:
    wave = wave_of(CHECKPOINT, tmp_path, 4)
    requests = {"temperature": 1.5, "top_k": 0}
    whole = captions_of(wave, "transformers", CAPTIONS, requests)
    batch = wave.batches[0]
    wave.batches = [batch[:1], batch[1:]]
    assert captions_of(wave, "inflight", OTHER, requests) == whole
    wave.batches = [batch]
    other = captions_of(wave, "inflight", THIRD, {**requests, "seed": 1})
    assert other != whole and len({*whole, *other}) > 4


@pytest.mark.slow
def test_words_that_are_avoided_are_not_said(tmp_path: Path) -> None:
    wave = wave_of(CHECKPOINT, tmp_path, 2)
    clip = wave.batches[0][0][1]
    plain = stock(CHECKPOINT, clip, 0, {})
    word = plain.split()[1]
    made = []
    for engine, namespace in (("transformers", OTHER), ("inflight", THIRD)):
        found = captions_of(wave, engine, namespace, {"avoid": (word,)})
        assert not any(re.search(rf"(?i)\b{word}\b", one) for one in found), found
        assert found[0] not in ("", plain)
        made.append(found)
    assert made[0] == made[1]


@pytest.mark.slow
def test_a_checkpoint_s_own_sampling_is_done_when_asked_for_and_else_not(tmp_path: Path) -> None:
    stated = {"do_sample": True, "temperature": 1.7, "top_k": 12, "top_p": 0.95}
    folder = stating(tmp_path / "model", **stated)
    wave = wave_of(folder, tmp_path / "store")
    sampled = [stock(folder, c, n, {"do_sample": True}) for n, c in wave.batches[0]]
    greedy = [stock(CHECKPOINT, c, n, {}) for n, c in wave.batches[0]]
    assert captions_of(wave, "auto", CAPTIONS, {"sampling": "checkpoint"}) == sampled
    assert captions_of(wave, "transformers", OTHER, {}) == greedy != sampled


@pytest.mark.slow
@pytest.mark.parametrize(
    "stated",
    [
        {"use_cache": False},
        {"return_dict_in_generate": True},
        {"num_return_sequences": 2, "num_beams": 2},
        {"output_scores": True, "output_hidden_states": True},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"num_beam_groups": 2, "num_beams": 2, "diversity_penalty": 0.5},
        {"prompt_lookup_num_tokens": 3},
        {"force_words_ids": [[5]], "num_beams": 2},
        {"cache_implementation": "quantized"},
        {"max_time": 1e-9},
        {"token_healing": True},
    ],
    ids=lambda stated: next(iter(stated)),
)
def test_settings_of_a_checkpoint_that_decide_no_words_change_nothing(
    stated: dict[str, Any], tmp_path: Path
) -> None:
    wave = wave_of(stating(tmp_path / "model", **stated), tmp_path / "store")
    expected = [stock(CHECKPOINT, c, n, {}) for n, c in wave.batches[0]]
    for engine, namespace in (("transformers", CAPTIONS), ("inflight", OTHER)):
        assert captions_of(wave, engine, namespace, {}) == expected, engine


@pytest.mark.slow
@pytest.mark.parametrize("as_list", [True, False])
def test_stop_strings_of_a_checkpoint_end_captions_before_them(
    as_list: bool, tmp_path: Path
) -> None:
    clip = wave_of(CHECKPOINT, tmp_path / "plain").batches[0][0][1]
    word = stock(CHECKPOINT, clip, 0, {}).split()[2]
    strings = [word, "never said"] if as_list else word
    folder = stating(tmp_path / "model", stop_strings=strings)
    wave = wave_of(folder, tmp_path / "store")
    tokenizer = load_processor(folder, trusted=False).tokenizer
    by_stock = [stock(folder, c, n, {"tokenizer": tokenizer}) for n, c in wave.batches[0]]
    assert by_stock[0].count(" ") == 2 and by_stock[0].endswith(word)
    expected = [text.split(word)[0].rstrip() for text in by_stock]
    for engine, namespace in (("transformers", CAPTIONS), ("inflight", OTHER)):
        found = captions_of(wave, engine, namespace, {})
        assert [text.rstrip() for text in found] == expected, engine
        assert wave.captions(namespace)[0]["ended"] == "stop"


@pytest.mark.slow
def test_a_system_text_stands_before_the_question(tmp_path: Path) -> None:
    folder = checkpoint("qwen2_5_vl")
    wave = wave_of(folder, tmp_path)
    processor, model = load_processor(folder, trusted=False), joint_model(folder)
    clip = wave.batches[0][0][1]
    turns = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPTS[0]}]},
    ]
    text = processor.apply_chat_template(turns, add_generation_prompt=True)
    inputs = processor(text=[text], images=[list(clip.frames)], return_tensors="pt")
    with torch.inference_mode():
        made = model.generate(**inputs, do_sample=False, max_new_tokens=TOKENS)
    new = made[:, inputs["input_ids"].shape[1] :]
    expected = processor.batch_decode(new, skip_special_tokens=True)[0].strip()
    for engine, namespace in (("transformers", CAPTIONS), ("inflight", OTHER)):
        assert captions_of(wave, engine, namespace, {"system": "Be brief."})[0] == expected


@pytest.mark.parametrize(
    "template", [None, "{% for m in messages %}USER:{% endfor %}", "{{ 1 // 0 }}"]
)
def test_a_model_without_a_place_for_a_system_text_says_so(template: str | None) -> None:
    processor: Any = copy.copy(load_processor(checkpoint("qwen2_5_vl"), trusted=False))
    processor.chat_template = template
    with pytest.raises(UsageError, match="--system"):
        write(processor, PARTS if template else PLAIN[0], "images", 1, "What?", "Be brief.")


CIRCLES = "A dog runs, a dog runs, a dog runs, a dog runs, a dog ru"


def test_circles_are_told_from_captions_that_are_merely_cut() -> None:
    assert is_repetitive(CIRCLES, "length") and is_repetitive("no " * 20, "length")
    assert is_repetitive("あの犬が走る。" * 8, "length")
    assert not is_repetitive(CIRCLES, "stop")
    for text in ("", "ha ha ha", "A dog runs, a cat sits, a bird sings and the sun is", "aaaa"):
        assert not is_repetitive(text, "length")


def test_a_caption_that_goes_round_in_circles_is_said_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wave = wave_of(CHECKPOINT, tmp_path)
    plain = captions_of(wave, "transformers", CAPTIONS, {})
    rounds = [text == plain[1] for text in plain]
    assert not all(rounds)
    monkeypatch.setattr(run, "is_repetitive", lambda text, _: text == plain[1])
    penalties = {"repetition_penalty": PENALTY, "no_repeat_ngram_size": NGRAM}
    expected = [
        stock(CHECKPOINT, clip, number, penalties) if again else text
        for (number, clip), text, again in zip(wave.batches[0], plain, rounds, strict=True)
    ]
    for engine, namespace in (("transformers", OTHER), ("inflight", THIRD)):
        assert captions_of(wave, engine, namespace, {"retry_loops": True}) == expected
        assert [one.get("retried") == "loop" for one in wave.captions(namespace)] == rounds


def test_a_token_is_lowered_once_however_often_it_was_generated() -> None:
    penalty = PresencePenalty(1.5)
    prompt = torch.tensor([[0, 1], [2, 2]])
    scores = torch.tensor([[1.0, 2.0, 3.0, -torch.inf]]).expand(2, -1)
    assert penalty(prompt, scores).equal(scores)
    later = torch.cat([prompt, torch.tensor([[2, 2, 3], [0, 1, 0]])], 1)
    lowered = [[1.0, 2.0, 1.5, -torch.inf], [-0.5, 0.5, 3.0, -torch.inf]]
    assert penalty(later, scores).tolist() == lowered
    assert scores[0].tolist() == [1.0, 2.0, 3.0, -torch.inf]


def test_nothing_asked_is_nothing_in_a_key() -> None:
    assert SamplingParams().key_fields == [] and SamplingParams(seed=3).key_fields == []
    assert SamplingParams(temperature=0.0, seed=3).non_defaults == {"temperature": 0.0}
    request = SamplingParams(temperature=0.5, seed=3, avoid=("a", "b"))
    assert SamplingParams(**request.non_defaults) == request
    assert SamplingParams(presence_penalty=0.0).key_fields == []
    present = SamplingParams(presence_penalty=1.5)
    assert present.key_fields == [[("presence_penalty", 1.5)]]
    assert present.non_defaults == {"presence_penalty": 1.5} and present.is_prefix_stable
    assert not present.is_sampled and "presence_penalty" in TEXT_SETTINGS


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0}, {"top_p": 1.1},
        {"top_k": -1}, {"seed": -1}, {"repetition_penalty": 0},
        {"sampling": "odd"}, {"avoid": (" ",)}, {"no_repeat_ngram": -2},
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        SamplingParams(**wrong)
