"""Restricts a model to complete answers that follow a JSON Schema.

llguidance reports which tokens may come next in each row; all others are masked. When few tokens
are left, only tokens that close the answer are allowed (`closing.py`). The answer so far is read
from the bytes of its tokens, because a tokenizer's decoding may change spaces.
"""

from collections.abc import Sequence, Set
from functools import lru_cache
from typing import Any

import llguidance
import llguidance.hf
import numpy as np
import torch
from transformers import LogitsProcessor

from artifacts.errors import UsageError
from stages.decode.closing import BETWEEN, IN_TEXT, JsonPosition, ranks
from stages.decode.json_schema import grammar_of, rest_of
from stages.decode.prompts import end_ids_of
from stages.memory.oom_retry import release_memory

NEEDED = range(0x20, 0x7F)
"""Bytes that must be tokens of their own: they can spell any JSON text."""
LONG = 1000
"""Rank of the first token of several bytes."""


class Vocabulary:
    """One tokenizer's tokens in llguidance's form. Raises UsageError if llguidance fails."""

    def __init__(self, tokenizer: Any) -> None:
        try:
            # Without slices, 151,000 tokens take 80 MB instead of 118, and masks are as fast.
            self.tokens = llguidance.hf.from_tokenizer(tokenizer, slices=[])
        except Exception as error:  # llguidance and tokenizers raise any type
            raise _unfit(tokenizer, str(error)) from error
        count = range(self.tokens.vocab_size)
        self.bytes: list[bytes] = [self.tokens.decode_bytes([token]) for token in count]
        single = {spelled[0] for spelled in self.bytes if len(spelled) == 1}
        if missing := [chr(byte) for byte in NEEDED if byte not in single]:
            raise _unfit(tokenizer, f"it has no token for {' '.join(missing[:5])}")
        self.in_text, self.between = (self._ranked(ranks(first)) for first in (IN_TEXT, BETWEEN))
        release_memory()  # reading needed the same amount again

    def _ranked(self, of_bytes: Sequence[int]) -> Any:
        ranked = (of_bytes[b[0]] if len(b) == 1 else LONG + len(b) for b in self.bytes)
        return np.fromiter(ranked, dtype=np.int32, count=len(self.bytes))


@lru_cache(maxsize=1)
def vocabulary_of(tokenizer: Any) -> Vocabulary:
    """Return the vocabulary of a tokenizer; a large one takes one or two seconds."""
    return Vocabulary(tokenizer)


@lru_cache(maxsize=8)
def _matcher(vocabulary: Vocabulary, schema: str) -> Any:
    return llguidance.LLMatcher(vocabulary.tokens, grammar_of(schema), log_level=0)


class ConstrainedAnswer:
    """An answer that is being generated token by token."""

    def __init__(
        self, vocabulary: Vocabulary, schema: str, limit: int, eos_token_ids: Set[int]
    ) -> None:
        self._vocabulary, self._limit, self._eos_token_ids = vocabulary, limit, eos_token_ids
        self._matcher = _matcher(vocabulary, schema).deep_copy()
        self._position = JsonPosition(rest_of(schema))
        self.token_ids: list[int] = []

    def extends_previous(self, tokens: Sequence[int]) -> bool:
        """Append the new tokens. Return False if `tokens` does not start with the previous
        tokens."""
        if [*tokens[: len(self.token_ids)]] != self.token_ids:
            return False
        for token in tokens[len(self.token_ids) :]:
            self.token_ids.append(token)
            if not self.done:
                self._position.feed(self._vocabulary.bytes[token])
                if not self._matcher.consume_token(token):
                    raise self._stuck()
        return True

    @property
    def done(self) -> bool:
        return self._position.done

    def allowed(self, width: int) -> Any:
        """Return which tokens may come next, of shape [width]."""
        found = np.zeros(width, dtype=bool)
        if self.done:
            found[[end for end in self._eos_token_ids if end < width]] = True
            return found
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        known = np.unpackbits(bits, bitorder="little")[: len(self._vocabulary.bytes)].astype(bool)
        count = min(width, len(known))
        found[:count] = known[:count]
        found[[end for end in self._eos_token_ids if end < width]] = False
        if self._matcher.is_error() or not found.any():
            raise self._stuck()
        if self._position.must_close(self._limit - len(self.token_ids)):
            closing = self.first_of(found)
            found[:] = False
            found[closing] = True
        return found

    def _stuck(self) -> UsageError:
        message = " ".join(self._matcher.get_error().split()) or "no token matches"
        text = b"".join(map(self._vocabulary.bytes.__getitem__, self.token_ids[-9:])).decode(
            "utf-8", "replace"
        )
        return UsageError(
            f"--schema allows no token after {text}: {message[:200]}",
            hint="Relax the schema at that place",
        )

    def first_of(self, allowed: Any) -> int:
        """Return the allowed token that closes the answer first."""
        vocabulary = self._vocabulary
        if self.done:
            return int(allowed.argmax())
        ranked = vocabulary.in_text if self._position.in_text else vocabulary.between
        count = min(len(allowed), len(ranked))
        return int(np.where(allowed[:count], ranked[:count], np.iinfo(np.int32).max).argmin())


class SchemaLogitsProcessor(LogitsProcessor):
    """Masks every token that would leave the schema, for each row of a batch."""

    def __init__(
        self, vocabulary: Vocabulary, schema: str, limit: int, eos_token_ids: Set[int]
    ) -> None:
        self._answer_args = (vocabulary, schema, limit, eos_token_ids)
        self._prompt_length: int | None = None
        """Number of prompt tokens, known from the first call."""
        self._answers: list[ConstrainedAnswer] = []

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return masked scores, of shape [rows, vocabulary]. Rows that have ended stay
        unchanged."""
        if self._prompt_length is None:
            self._prompt_length = ids.shape[1]
            self._answers = [ConstrainedAnswer(*self._answer_args) for _ in range(len(ids))]
        for row, token_ids in enumerate(ids[:, self._prompt_length :].tolist()):
            if not self._answers[row].extends_previous(token_ids):
                self._answers[row] = ConstrainedAnswer(*self._answer_args)
                self._answers[row].extends_previous(token_ids)
        masks = [self._mask(answer, scores.shape[1]) for answer in self._answers]
        impossible = torch.from_numpy(~np.stack(masks)).to(scores.device)
        found = scores.masked_fill(impossible, -torch.inf)
        # If another processor, such as that of --avoid, masked all allowed tokens, the schema wins.
        for row, best in enumerate(found.amax(dim=1).tolist()):
            if best == -torch.inf:
                found[row, self._answers[row].first_of(masks[row])] = 0.0
        return found

    def _mask(self, answer: ConstrainedAnswer, width: int) -> Any:
        has_ended = answer.done and answer.token_ids[-1] in self._answer_args[-1]
        return np.ones(width, dtype=bool) if has_ended else answer.allowed(width)


def eos_ids_of(half: Any, processor: Any) -> frozenset[int]:
    """Return the end tokens of a caption. Raises UsageError if there are none."""
    if not (found := end_ids_of(half)):
        raise _unfit(processor.tokenizer, "the model has no token that ends a caption")
    return frozenset(found)


def answer_text(
    vocabulary: Vocabulary, schema: str, row: Sequence[int], limit: int
) -> tuple[str, bool]:
    """Return the text of an answer's tokens so far, and whether it was closed early to fit
    `limit`."""
    position, text, shortened = JsonPosition(rest_of(schema)), b"", False
    for place, token in enumerate(row):
        if position.done:
            break
        shortened = shortened or position.must_close(limit - place)
        text += vocabulary.bytes[token]
        position.feed(vocabulary.bytes[token])
    return text.decode(errors="replace"), shortened


def _unfit(tokenizer: Any, why: str) -> UsageError:
    return UsageError(
        f"--schema does not work with {type(tokenizer).__name__}: {why}",
        hint="Leave --schema out, or use another model",
    )
