"""A language half, features of clips, and how long each caption is to be: what `inflight` says in
several ways. Lengths are drawn, so that all ways say as much whatever the model would."""

import math
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks._bench import features_of

CLIPS = 64
MEDIAN, MANY, MOST, LEAST = 60, 180, 256, 4
"""Tokens of a caption: of the middle one, within which 95 of 100 are, of the longest, of the
shortest."""
PROMPTS = ("Describe this video in detail.", "What happens in this video?", "Name the colours.")


def lengths(chunks: int, scale: float, seed: int = 5) -> list[int]:
    """The tokens of each caption."""
    rng, spread = random.Random(seed), math.log(MANY / MEDIAN) / 1.645
    drawn = (rng.lognormvariate(math.log(MEDIAN), spread) for _ in range(chunks))
    return [max(2, round(scale * min(MOST, max(LEAST, each)))) for each in drawn]


class Work:
    """A language half, features of clips, and how long each caption is to be."""

    def __init__(self, model: Path, dtype: str, store: str, chunks: int, scale: float) -> None:
        from stages.decode.engines.inflight.compiled import CompiledStep
        from stages.decode.generate_kwargs import make_greedy
        from stages.models.loading import ModelJob

        frames = random.Random(3).choices((4, 6, 8, 12, 16), k=min(CLIPS, chunks))
        self._rows = list(features_of(model, dtype, store, frames).values())
        source = ModelJob(model=str(model), dtype=dtype, attention="sdpa")
        self._processor, self.half = source.processor(), source.load_reloadable("language").model
        make_greedy(self.half, self._processor)
        settings = self.half.generation_config
        settings.eos_token_id, settings.min_new_tokens, settings.pad_token_id = None, None, 0
        self.wanted = lengths(chunks, scale)
        self.given = [self.inputs([at]) for at in range(chunks)]
        self.prompts = [inputs["input_ids"].shape[1] for inputs, _ in self.given]
        self.read_seconds = 0.0
        self.step = CompiledStep("cpu")
        prefill = self.half._prefill

        def timed(*told: Any, **options: Any) -> Any:
            started = time.process_time()
            output = prefill(*told, **options)
            self.read_seconds += time.process_time() - started
            return output

        self.half._prefill = timed

    def inputs(self, chunks: Sequence[int]) -> tuple[dict[str, Any], Any]:
        """What `generate` is given of these chunks."""
        from stages.models.halves.features import Features
        from stages.models.halves.records import merge_blank, merge_rows
        from stages.models.processors.prepare import drop_end_token, rebuild

        rows = [self._rows[at % len(self._rows)] for at in chunks]
        texts = [PROMPTS[at % len(PROMPTS)] for at in chunks]
        inputs = drop_end_token(self.half, rebuild(self._processor, rows, texts))
        return inputs, Features(merge_rows(rows), rows[0].needs, merge_blank(rows))
