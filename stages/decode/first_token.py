"""Reads from the logits of an answer's first token how probable its tokens and some labels are."""

import torch

from artifacts.disk.json_shapes import Json
from stages.decode.generation import RequestSettings
from stages.models.processors.prepare import full_answer_ids
from stages.models.protocols import Processor

LEAST = -9999.0
"""Stands for the log probability of a token that is ruled out, as in OpenAI's API."""


def first_token_fields(
    processor: Processor, logits: torch.Tensor, settings: RequestSettings
) -> dict[str, Json]:
    """Return the field of a record for the raw `logits` [vocabulary] of a first token: the most
    probable tokens as text, and the labels of the settings. A label of several tokens is at most as
    probable as its first one, and then the labels are `bounded`."""
    likely = logits.float().log_softmax(-1).clamp(min=LEAST).cpu()
    scores, tokens = (of.tolist() for of in likely.topk(min(settings.top_logprobs, len(likely))))
    decode = processor.tokenizer.decode
    ids = [full_answer_ids(processor, label) for label in settings.labels]
    return {
        "first": {
            "top": [[decode([t]), score] for t, score in zip(tokens, scores, strict=True)],
            "scores": [float(likely[of_label[0]]) for of_label in ids],
            "bounded": any(len(of_label) > 1 for of_label in ids),
        }
    }
