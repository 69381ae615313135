"""Log probabilities of labels on stored features are those of plain forward passes of the whole
model with pixels, one for each label and without a cache."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from stages.answer.label_scores import LabelScores, ProbeInput, label_tokens
from stages.decode.chunked_prefill import PrefillOptions
from stages.decode.generate_kwargs import make_greedy
from stages.decode.prompts import append_ids
from stages.decode.protocol import read_features
from stages.models.loading import ModelJob
from tests.support.clips import clips, joint_inputs, joint_model, profile_of
from tests.support.processors import KINDS, plain_call
from tests.support.waves import FEATURES, encoded_wave, folder_of

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROBES = (
    ("Is there a star?", ("Yes", "No")),
    ("Which colour is it?", ("red", "red and blue", "green", "grey")),  # nested, and a common stem
    ("How sharp is it?", tuple("12345")),
    ("How good?", tuple(map(str, range(1, 11)))),
    ("Is there a car in it?", ("Yes", "No")),
)
PREFIX, WHOLE, STEPWISE = "prefix", "whole", "stepwise"
QUICK = (
    ("qwen2_5_vl", "video", PREFIX),
    ("llava", "image", PREFIX),
    ("smolvlm", "image", PREFIX),
    ("blip_2", "image", WHOLE),
)
SLOW = (
    ("florence2", "image", WHOLE),
    ("glm4v", "image", PREFIX),
    ("llava_next", "image", PREFIX),
    ("paligemma", "image", STEPWISE),
    ("perception_lm", "image", PREFIX),
    ("qwen2_5_omni", "image", PREFIX),
    ("qwen2_5_vl", "image", PREFIX),
    ("qwen3_vl", "video", PREFIX),
    ("internvl", "image", PREFIX),
    ("gemma3", "image", PREFIX),
    ("llava_onevision", "image", PREFIX),
)
TOLERANCE = 1e-4


class Chunks(NamedTuple):
    """Two chunks of a family with their stored features, its half, and the whole model."""

    family: str
    clips: Sequence[Any]
    rows: Sequence[Any]
    half: Any
    whole: Any
    processor: Any

    def scores(self) -> LabelScores:
        return LabelScores(self.processor, PrefillOptions())

    def measured(self, scores: LabelScores, at: int, *probes: Any) -> list[list[float]]:
        asked = (ProbeInput("", str(at), self.rows[at], *probe) for probe in probes)
        with torch.inference_mode():
            return [scores.of(self.half, one)[0] for one in asked]

    def _inputs(self, at: int, prompt: str) -> dict[str, Any]:
        if self.family in KINDS:
            return plain_call(self.family, self.processor, [self.clips[at]], [prompt])
        return joint_inputs(self.processor, [self.clips[at]], [prompt])

    def plain(self, at: int, prompt: str, labels: Sequence[str]) -> list[float]:
        """The same by the whole model: a forward pass for each label, with pixels."""
        return [*self._plain(at, prompt, labels)]

    def _plain(self, at: int, prompt: str, labels: Sequence[str]) -> Iterator[float]:
        for ids in label_tokens(self.half, self.processor, labels).ids:
            inputs = append_ids(self.whole, self._inputs(at, prompt), torch.tensor([ids]))
            if self.family == "paligemma":  # what follows the prompt sees no later token
                inputs["token_type_ids"][:, -len(ids) :] = 1
            with torch.inference_mode():
                logits = self.whole(**inputs, use_cache=False).logits[0, -len(ids) - 1 : -1]
            yield float(logits.float().log_softmax(-1)[range(len(ids)), ids].sum())


def chunks_of(folder: Path, family: str, kind: str) -> Chunks:
    path, batch = folder_of(family), clips(kind, 2)
    wave = encoded_wave(folder, path, batch)
    record_set = wave.record_set("features", FEATURES)
    rows = [read_features(record_set, f"features-{at}") for at in range(2)]
    source = ModelJob(model=str(path), dtype="float32")
    modules = profile_of(path).parts["language"].extra_modules
    processor, half = source.processor(), source.load("language", modules)
    make_greedy(half, processor)
    return Chunks(family, batch, rows, half, joint_model(path), processor)


def check(folder: Path, family: str, kind: str, way: str) -> None:
    chunks, scores = chunks_of(folder, family, kind), None
    for at in range(2):
        scores = scores or chunks.scores()
        beside = chunks.measured(scores, at, *PROBES)
        expected = [chunks.plain(at, *probe) for probe in PROBES]
        for measured, plain in zip(beside, expected, strict=True):
            assert measured == pytest.approx(plain, abs=TOLERANCE)
            assert _order(measured) == _order(plain)
        alone = [chunks.measured(chunks.scores(), at, probe)[0] for probe in PROBES]
        turned = chunks.measured(scores, at, *PROBES[::-1])[::-1]
        assert beside == alone == turned
        assert scores.way == way
    first, second = (chunks.measured(chunks.scores(), at, PROBES[1])[0] for at in range(2))
    assert first != second, "or it speaks of nothing that it sees"


def _order(values: Sequence[float]) -> list[int]:
    return sorted(range(len(values)), key=values.__getitem__)


@pytest.mark.parametrize(("family", "kind", "way"), QUICK)
def test_answers_equal_plain_forward_passes(
    family: str, kind: str, way: str, tmp_path: Path
) -> None:
    check(tmp_path, family, kind, way)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "kind", "way"), SLOW)
def test_answers_of_every_family_equal_plain_forward_passes(
    family: str, kind: str, way: str, tmp_path: Path
) -> None:
    check(tmp_path, family, kind, way)
