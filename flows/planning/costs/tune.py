"""Estimates what training an adapter on stored features costs; knows no data."""

import math
from dataclasses import replace

from flows.job.config import CaptionConfig
from flows.job.models import Model
from flows.planning.costs import decode
from flows.planning.estimate import StageEstimate, Term
from flows.planning.rungs import Rung, sizes
from flows.planning.workloads import Workload

CAPTION_TOKENS = 256
"""Tokens of a caption that are reckoned with."""
KEPT = 34
"""Numbers of a hidden state that a layer keeps of a token for the backward pass, about
(Korthikanti et al. 2022, equation 1)."""


def rungs(model: Model, config: CaptionConfig, device: str) -> list[Rung]:
    """Return fewer and fewer examples at once."""
    precision = model.best("language").precision
    single = Rung(stage="tune", batch=1, precision=precision)
    return [replace(single, batch=size) for size in sizes(config.batch_size)]


def memory(model: Model, rung: Rung, workload: Workload, *, device: str, new: int) -> StageEstimate:
    """Add to what reading the prompts takes what is kept of each layer for the backward pass."""
    new = min(new, CAPTION_TOKENS)
    found = decode.memory(model, rung, replace(workload, chunks=rung.batch), device=device, new=new)
    tokens = rung.batch * (workload.tokens + new)
    width, layers = model.profile.feature_width, max(1, model.profile.language.layers)
    kept = KEPT * width * layers * tokens * 2
    why = f"{tokens:,} tokens x {layers} layers x {KEPT} x {width:,}, for the backward pass"
    terms = [*found.terms, Term(part="activation", bytes=math.ceil(kept), why=why)]
    return StageEstimate.of(rung, terms, device=device, workload=workload)
