"""How probable tokens and labels are as the first token of an answer: the same by every engine as
from the logits of `generate`."""

from pathlib import Path
from typing import Any

import pytest

from stages.decode.engines.inflight.engine import InflightEngine
from stages.decode.engines.transformers import TransformersEngine
from stages.decode.generation import DecodeJob, RequestSettings
from stages.decode.prompts import prompts_for
from stages.decode.protocol import DecodeEngine, DecodeRequest, read_features
from stages.memory.oom_retry import OomRetry
from stages.models.halves.features import Features
from stages.models.halves.generate import generate
from stages.process.job import parse_job
from tests.support.clips import PROMPTS
from tests.support.waves import FEATURES, events, mixed_wave, no_faults

SETTINGS = RequestSettings(max_new_tokens=1, top_logprobs=5, labels=("A", "nd", "close-up"))
ENGINES: dict[str, type[DecodeEngine]] = {
    "transformers": TransformersEngine,
    "inflight": InflightEngine,
}


@pytest.mark.parametrize("engine", ENGINES)
def test_the_first_token_is_as_probable_as_generate_finds_it(engine: str, tmp_path: Path) -> None:
    wave = mixed_wave(tmp_path)
    wave.settings |= {"engine": engine, "slots": 2, "requests": "pipe", "for_clients": True}
    job = parse_job(DecodeJob, wave.to_decode(PROMPTS, tokens=24))
    features = wave.record_set("features", FEATURES)
    (items,) = job.batches
    plain, measured = items[0], items[1]._replace(settings=SETTINGS.text)
    requests = [
        DecodeRequest(item, read_features(features, item.features)) for item in (plain, measured)
    ]
    run = ENGINES[engine](job)
    run.resolve_engine(requests[0])
    with events() as (report, _):
        retry = OomRetry(report, lambda: None, no_faults())
        outputs = {
            request.item.key: output
            for some, captions in run.run([requests], retry)
            for request, output in zip(some, captions, strict=True)
        }
    assert "first" not in outputs[plain.key].fields
    first = outputs[measured.key].fields["first"]
    reference = TransformersEngine(job)
    expected, tokenizer = first_logits(reference, requests[1]), reference.processor.tokenizer
    top = expected.topk(5)
    assert [text for text, _ in first["top"]] == [tokenizer.decode([t]) for t in top.indices]
    assert [score for _, score in first["top"]] == pytest.approx(top.values.tolist(), abs=1e-3)
    ids = [tokenizer(label, add_special_tokens=False)["input_ids"] for label in SETTINGS.labels]
    assert first["scores"] == pytest.approx([float(expected[of[0]]) for of in ids], abs=1e-3)
    assert [len(of) for of in ids[:2]] == [1, 1] and len(ids[2]) > 1 and first["bounded"] is True


def first_logits(engine: TransformersEngine, request: DecodeRequest) -> Any:
    """The log probabilities of the first token by `generate`, of shape [vocabulary]."""
    item = request.item
    kwargs = engine.generate_kwargs.of(item)
    half, processor, row = engine.half.model, engine.processor, request.features
    options: dict[str, Any] = {"return_dict_in_generate": True, "output_logits": True}
    options |= kwargs.options(half, processor, [item])
    inputs = prompts_for(half, processor, [row], [item.prompt], kwargs.generation)
    made: Any = generate(half, inputs, Features.of([row]), max_new_tokens=1, **options)
    return made.logits[0][0].float().log_softmax(-1)
