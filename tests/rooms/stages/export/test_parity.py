"""How far a checkpoint is from its original, told in sums and of single captions and chunks: a half
expects at each word what it would say."""

import json
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from weakref import ref

import pytest
import torch
from safetensors.torch import load_file

from artifacts.disk.json_records import typed
from flows.core.console.display import Display
from flows.core.job.prepare import prepare as prepare_job
from flows.core.machine.launch import DirectLauncher
from flows.core.options.commands import CaptionConfig
from flows.execution.run import caption
from penstock_demo import CHECKPOINT
from penstock_demo.clips import write_clips
from stages.decode.generate_kwargs import make_greedy
from stages.decode.scoring import (
    ForcedCaption,
    forced_logits,
    forced_logits_stepwise,
    is_bidirectional,
)
from stages.export import CaptionedItem, ExportJob, JudgeJob
from stages.export.compare import nearness
from stages.export.logit_agreement import LogitAgreement
from stages.export.logit_agreement import run as judge
from stages.export.parity import DIGITS, KEPT, Figures, evaluate_parity, of_each
from stages.export.run import run as write
from stages.memory.oom_retry import release_memory
from stages.models.encoding.batch import encode_batches
from stages.models.half_job import HalfJob
from stages.models.halves.features import Features, placeholder_ids
from stages.models.halves.generate import generate, new_tokens, prompt_in
from stages.models.halves.load import load_half
from stages.models.loading import ModelJob
from stages.models.processors.blank_clips import Clip
from stages.models.processors.loading import load_processor
from stages.models.processors.prepare import drop_end_token, prepare, rebuild
from stages.process.job import job_fields
from tests.support.checkpoints import MODELS, whole_checkpoint
from tests.support.families import checkpoint
from tests.support.media import picture
from tests.support.waves import noted, told_by


def test_the_figure_of_each_is_told_from_the_smallest_on_in_few_digits() -> None:
    smallest = float(f"{1 / 3e7:.{DIGITS}g}")
    found = of_each({"b": 2.0, "a": 1 / 3e7, "c": 2.0})
    assert list(found.items()) == [("a", smallest), ("b", 2.0), ("c", 2.0)]
    many = {f"{at}": float(at * 7 % 1009) for at in range(1009)}
    kept = list(of_each(many).values())
    assert len(kept) == KEPT
    assert (kept[0], kept[-1]) == (0.0, 1008.0)
    assert max(b - a for a, b in pairwise(kept)) <= 6
    assert of_each({}) == {}


def test_the_divergence_of_captions_sums_up_to_that_of_all_words() -> None:
    agreement, noise = LogitAgreement(), torch.Generator().manual_seed(3)
    lengths = {"short": 2, "long": 6}
    for key, words in lengths.items():
        expected = torch.randn(words, 11, generator=noise)
        agreement.add(key, expected, expected + 0.1 * torch.randn(words, 11, generator=noise))
    same = torch.randn(4, 11, generator=noise)
    agreement.add("same", same, same.clone())
    message = agreement.to_json()
    each = message["by_caption"]
    assert each["same"] == 0.0 and min(each["short"], each["long"]) > 0
    summed = sum(each[key] * words for key, words in lengths.items())
    assert summed / 12 == pytest.approx(message["divergence"], rel=1e-4)
    assert (message["captions"], message["tokens"]) == (3, 12)
    figures = typed(Figures, {"text": message})
    assert evaluate_parity(figures, 64, {}).to_json()["text"] == message


def test_the_cosine_of_chunks_sums_up_to_that_of_all_rows() -> None:
    expected = torch.randn(9, 16, generator=torch.Generator().manual_seed(4))
    found = expected.clone()
    found[6:] += torch.randn(3, 16, generator=torch.Generator().manual_seed(5))
    message = nearness(expected, found, [("good", 6), ("bad", 3)])
    each = message["by_chunk"]
    assert each["good"] == pytest.approx(1.0) and each["bad"] < 0.9
    assert list(each) == ["bad", "good"]
    mean = (6 * each["good"] + 3 * each["bad"]) / 9
    assert mean == pytest.approx(message["centred_mean"], abs=1e-5)
    assert message["chunks"] == 2


def test_divergence_is_that_of_the_two_distributions() -> None:
    expected, found = torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    agreement = LogitAgreement()
    agreement.add("one", expected, found)
    message = agreement.to_json()
    first, second = expected.softmax(-1), found.softmax(-1)
    mean = (first * (first / second).log()).sum(-1).mean()
    assert message["divergence"] == pytest.approx(float(mean), rel=1e-5)
    assert message["token_agreement"] == 0.5 and message["captions_as_native"] == 0


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The fields of a job that is asked about captions of the demo model, in 32 bit."""
    folder = tmp_path_factory.mktemp("words")
    write_clips(folder / "clips", 3, seed=4)
    where: Any = {"out": str(folder / "out"), "store": str(folder / "store"), "model": "demo"}
    how: Any = {"precision": "fp32", "engine": "transformers"}
    config = CaptionConfig(sources=(str(folder / "clips"),), **where, **how)
    caption(config, Display(quiet=True))
    job = prepare_job(config, DirectLauncher(lambda *_: None))
    tasks = job.ledger.tasks(job.media)
    captions = [job.ledger["captions"].meta(task["captions"])["caption"] for task in tasks]
    members = [
        CaptionedItem(task["captions"], task["features"], task.medium.prompt, text)
        for task, text in zip(tasks, captions, strict=True)
    ]
    half = HalfJob(model=str(CHECKPOINT), dtype="float32")
    given = {"half": half, "store": job.store.url, "members": members}
    return {**given, "features_namespace": tasks[0].variant["features"]}


def answer_to(
    words: dict[str, Any], folder: Path, *, offload: bool = False, **changes: Any
) -> dict[str, Any]:
    """The last notes of the stage."""
    changes["half"] = replace(words["half"], offload=offload)
    job = JudgeJob(**{**words, "folder": str(folder), **changes})
    return noted(told_by(judge, json.loads(json.dumps(job_fields(job)))))


@pytest.mark.slow
def test_it_expects_the_words_that_it_says_also_streamed(
    words: dict[str, Any], tmp_path: Path
) -> None:
    answer_to(words, tmp_path)
    tokenizer = ModelJob.of(words["half"]).processor().tokenizer
    for member in words["members"]:
        text = tokenizer(member.caption, add_special_tokens=False)["input_ids"]
        likely = load_file(tmp_path / member.key)["logits"].argmax(-1).tolist()
        assert likely[:-1] == text and len(likely) == len(text) + 1
    agreement = answer_to(words, tmp_path, compared=True)["agreement"]
    assert agreement["token_agreement"] == agreement["captions_as_native"] == 1
    assert agreement["divergence"] == 0
    agreement = answer_to(words, tmp_path, compared=True, offload=True)["agreement"]
    assert agreement["divergence"] < 1e-9 and agreement["token_agreement"] == 1


@pytest.mark.slow
def test_rounded_weights_are_put_in_also_streamed(words: dict[str, Any], tmp_path: Path) -> None:
    how: dict[str, Any] = {"parts": ("language",), "group": 32}
    to = str(tmp_path / "packed")
    packed = ExportJob(model=words["half"].model, recipe={}, folder=to, kind="w4a16", **how)
    told_by(write, job_fields(packed))
    answer_to(words, tmp_path / "expected")
    how |= {"rounded": to, "bits": 4, "compared": True}
    resident, streamed = (
        answer_to(words, tmp_path / "expected", offload=offload, **how)["agreement"]["divergence"]
        for offload in (False, True)
    )
    assert resident > 1e-6 and streamed == pytest.approx(resident, rel=1e-4)


@pytest.mark.slow
def test_a_half_is_freed_before_it_is_loaded_again(
    words: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Reloaded:
        """A half that is loaded anew for each call."""

        def __init__(self, job: ModelJob, keep: Any) -> None:
            self.load = partial(job.load, keep)
            self.model: Any = self.load()

        def call(self, function: Any) -> Any:
            answers, half = function(self.model), ref(self.model)
            self.model = None
            release_memory()
            assert half() is None, "the half stays in memory beside the next one"
            self.model = self.load()
            return answers

    monkeypatch.setattr(ModelJob, "load_reloadable", lambda job, keep: Reloaded(job, keep))
    monkeypatch.setattr("stages.export.logit_agreement.CAPTIONS_PER_PASS", 1)
    answer_to(words, tmp_path)
    assert len(list(tmp_path.iterdir())) == len(words["members"])


PROMPT = "Say it."
TOKENS = 6


def said_by(family: str) -> tuple[Any, Any, ForcedCaption]:
    """A language half, its processor, and a caption that it says of a picture."""
    folder = whole_checkpoint(family) if family in MODELS else checkpoint(family)
    processor, vision = load_processor(folder, False), load_half(folder, "vision")
    half = load_half(folder, "language")
    make_greedy(half, processor)
    for seed in range(9):
        clip = Clip(kind="image", frames=picture(seed, 64, 64)[None], times=(0.0,), seconds=0.0)
        row = encode_batches(vision, [[prepare(processor, clip)]])[0][0]
        inputs = drop_end_token(half, rebuild(processor, [row], [PROMPT]))
        features = Features(row.features, row.needs, row.blank)
        made = generate(half, inputs, features, max_new_tokens=TOKENS)
        ids = new_tokens(made, prompt_in(half, inputs)).cpu()
        # Random weights may say a picture's own word.
        if ids.shape[1] > 1 and not set(ids[0].tolist()) & set(placeholder_ids(half.config)):
            break
    return half, processor, ForcedCaption(row, PROMPT, ids)


QUICK = ("llava", "florence2", "paligemma")
"""By protocol, with an encoder, and one that looks ahead."""
SLOW = (
    *("qwen2_5_vl", "blip_2", "gemma3", "glm4v", "instructblip", "internvl", "llama4"),
    *("llava_next", "llava_onevision", "perception_lm", "qwen3_vl", "smolvlm"),
)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(
    "family", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_it_expects_what_it_says(family: str) -> None:
    half, processor, caption = said_by(family)
    request = caption._replace(ids=caption.ids[:, :-1])
    by_steps = forced_logits_stepwise(half, processor, request)
    assert by_steps.argmax(-1).tolist() == caption.ids[0].tolist()
    ahead = is_bidirectional(half, processor, request)
    assert ahead == (family == "paligemma")
    if not ahead:
        at_once = forced_logits(half, processor, request)
        torch.testing.assert_close(at_once, by_steps, rtol=0, atol=1e-4)
