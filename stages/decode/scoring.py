"""Computes how sure a model is of given texts, with one pass over stored features and without the
vision half.

That is read from a language half's logits at each token of a given caption (teacher forcing).
The caption is appended to the prompt, and `generate` is called for one more token. So the half
reads everything in one pass, by whatever split strategy its features use. Hooks make it compute the
logits at the caption's positions and collect them.

A half with bidirectional attention over its prompt would see the caption. A test run detects that,
and such a half is then evaluated step by step.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from artifacts.errors import UsageError
from stages.decode.chunked_prefill import relative_difference, tolerance
from stages.decode.generation import SamplingParams
from stages.decode.prompts import append_ids, prompts_for
from stages.models.halves.features import Features
from stages.models.halves.generate import generate
from stages.models.halves.records import FeatureRecord
from stages.models.loading import warm as warm
from stages.models.processors.prepare import answer_ids
from stages.models.protocols import Half, Processor, Tree

KEEP = "logits_to_keep"
"""Name of the argument that limits the computed logits, in most model classes."""
_collector: ContextVar[list[torch.Tensor] | None] = ContextVar("_taker", default=None)
"""List that the current call's hooks append to. Calls in layer lockstep take turns, each in a
context of its own, and the hooks of all calls are installed at once."""


class ForcedCaption(NamedTuple):
    """A caption whose logits are requested."""

    row: FeatureRecord
    prompt: str
    ids: torch.Tensor
    """Its tokens [1, tokens], without a forced beginning."""
    params: SamplingParams = SamplingParams()
    """Holds the system prompt and the forced beginning."""

    def inputs(self, half: Half, processor: Processor) -> dict[str, Tree]:
        """Return the inputs of `generate` before these tokens."""
        return prompts_for(half, processor, [self.row], [self.prompt], self.params)


def caption_of(
    processor: Processor,
    row: FeatureRecord,
    prompt: str,
    text: str,
    params: SamplingParams | None = None,
) -> ForcedCaption:
    """Return a caption with its tokens; `text` follows the forced beginning, if there is one."""
    params = params or SamplingParams()
    rest = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = rest if params.start_with else answer_ids(processor, text)
    return ForcedCaption(row, prompt, torch.tensor([ids], dtype=torch.long), params)


def forced_logits(half: Half, processor: Processor, caption: ForcedCaption) -> torch.Tensor:
    """Return the logits of each token of a caption and of the token after it, in fp32 on the host,
    of shape [tokens + 1, vocabulary]. Raises UsageError for a half that does not return logits."""
    row, ids = caption.row, caption.ids
    inputs = append_ids(half, caption.inputs(half, processor), ids)
    features = Features.of([row])
    count = ids.shape[1] + 1
    with last_logits(half, count) as collected:
        generate(half, inputs, features, max_new_tokens=1)
    if not collected or collected[-1].shape[1] < count:
        raise UsageError(
            f"{type(half).__name__} does not return logits for each token of a caption",
            hint="Its quantized checkpoint cannot be compared; use --accept to export it anyway",
        )
    return collected[-1][0, -count:].float().cpu()


def forced_logits_stepwise(
    half: Half, processor: Processor, caption: ForcedCaption
) -> torch.Tensor:
    """Return the same logits, computed with one pass per token. A half with bidirectional attention
    over its prompt would otherwise see the caption."""
    row, ids, inputs = caption.row, caption.ids, caption.inputs(half, processor)
    features = Features.of([row])
    options: dict[str, Any] = {"output_logits": True, "return_dict_in_generate": True}
    options["logits_processor"] = [_Dictated(ids[0].tolist())]
    generated: Any = generate(half, inputs, features, max_new_tokens=ids.shape[1] + 1, **options)
    return torch.stack(generated.logits, dim=1)[0].float().cpu()


def is_bidirectional(half: Half, processor: Processor, caption: ForcedCaption) -> bool:
    """Return whether the first logits depend on the caption that follows."""
    if caption.ids.shape[1] < 2:
        return False
    short = caption._replace(ids=caption.ids[:, :1])
    first, second = (forced_logits(half, processor, c)[:1] for c in (short, caption))
    return relative_difference([first], [second]) > tolerance(half.dtype)


class _Dictated:
    """Forces `generate` to emit given tokens, one per step, and then leaves it free."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = iter(tokens)

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        token = next(self._tokens, None)
        if token is None:
            return scores
        forced = torch.full_like(scores, -torch.inf)
        forced[:, token] = 0.0
        return forced


@contextmanager
def last_logits(half: Half, count: int) -> Iterator[list[torch.Tensor]]:
    """Compute the logits of the last `count` positions. Yields a list that collects them; its last
    entry comes from the outermost model."""
    collected: list[torch.Tensor] = []
    _collector.set(collected)

    def keep_logits(_: Any, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        return (args, {**given, KEEP: count}) if _collector.get() is collected else None

    def last_positions(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        # Contiguous: for a slice of several rows, a CPU's 16-bit matrix product unpacks all
        # weights.
        return (
            (args[0][:, -count:].contiguous(), *args[1:]) if _collector.get() is collected else None
        )

    def collect(_: Any, __: Any, output: Any) -> None:
        logits = getattr(output, "logits", None)
        if isinstance(logits, torch.Tensor) and _collector.get() is collected:
            collected.append(logits)

    with ExitStack() as hooks:
        for module in half.modules():
            if not isinstance(module, PreTrainedModel):
                continue
            hooks.callback(module.register_forward_hook(collect).remove)
            if KEEP in inspect.signature(module.forward).parameters:
                hook = module.register_forward_pre_hook(keep_logits, with_kwargs=True)
                hooks.callback(hook.remove)
        head = half.get_output_embeddings()
        if head is not None:
            hooks.callback(head.register_forward_pre_hook(last_positions, prepend=True).remove)
        yield collected
