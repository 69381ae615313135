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
from stages.memory.oom_retry import release_memory

NEEDED = range(0x20, 0x7F)
"""Bytes that have to be tokens by themselves: any text of JSON can be spelled with them."""
LONG = 1000
"""Rank of the first of the tokens that are longer than a byte."""


class Vocabulary:
    """One tokenizer's tokens as llguidance takes them. Raises UsageError where that fails."""

    def __init__(self, tokenizer: Any) -> None:
        try:
            # Without slices: of 151,000 tokens 80 MB are kept and not 118, and no mask is slower.
            self.tokens = llguidance.hf.from_tokenizer(tokenizer, slices=[])
        except Exception as error:  # whatever its own code or the tokenizer's raises
            raise _unfit(tokenizer, str(error)) from error
        count = range(self.tokens.vocab_size)
        self.bytes: list[bytes] = [self.tokens.decode_bytes([token]) for token in count]
        single = {spelled[0] for spelled in self.bytes if len(spelled) == 1}
        if missing := [chr(byte) for byte in NEEDED if byte not in single]:
            raise _unfit(tokenizer, f"it has no token for {' '.join(missing[:5])}")
        self.in_text, self.between = (self._ranked(ranks(first)) for first in (IN_TEXT, BETWEEN))
        release_memory()  # as much again was needed to read it

    def _ranked(self, of_bytes: Sequence[int]) -> Any:
        ranked = (of_bytes[b[0]] if len(b) == 1 else LONG + len(b) for b in self.bytes)
        return np.fromiter(ranked, dtype=np.int32, count=len(self.bytes))


@lru_cache(maxsize=1)
def vocabulary_of(tokenizer: Any) -> Vocabulary:
    """Return the tokens of a tokenizer; of a large one that takes a second or two."""
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
        """Take what was said since; return whether what was said before is the beginning of it."""
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
        """Return which of so many tokens may come next, of shape [width]."""
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
        message = " ".join(self._matcher.get_error().split()) or "no token can come next"
        token_ids = b"".join(map(self._vocabulary.bytes.__getitem__, self.token_ids[-9:])).decode(
            "utf-8", "replace"
        )
        return UsageError(
            f"--schema leads nowhere after {token_ids}: {message[:200]}",
            hint="Make the schema less narrow there",
        )

    def first_of(self, allowed: Any) -> int:
        """Return the token of these that closes first."""
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
        """Tokens of the prompt: those of the first call."""
        self._answers: list[ConstrainedAnswer] = []

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores [rows, words] in which such words are impossible. Rows that have ended are
        as they were."""
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
        # Where all that may come was made impossible before, such as by --avoid, the form wins.
        for row, best in enumerate(found.amax(dim=1).tolist()):
            if best == -torch.inf:
                found[row, self._answers[row].first_of(masks[row])] = 0.0
        return found

    def _mask(self, answer: ConstrainedAnswer, width: int) -> Any:
        has_ended = answer.done and answer.token_ids[-1] in self._answer_args[-1]
        return np.ones(width, dtype=bool) if has_ended else answer.allowed(width)


def ends_of(half: Any, processor: Any) -> frozenset[int]:
    """Return the tokens that end a caption. Raises UsageError where there are none."""
    eos_token_ids = half.generation_config.eos_token_id
    if eos_token_ids is None:
        eos_token_ids = half.config.get_text_config().eos_token_id
    if eos_token_ids is None:
        raise _unfit(processor.tokenizer, "the model has no token that ends a caption")
    return frozenset([eos_token_ids] if isinstance(eos_token_ids, int) else eos_token_ids)


def answer_text(
    vocabulary: Vocabulary, schema: str, row: Sequence[int], limit: int
) -> tuple[str, bool]:
    """Return the answer that a row's tokens are so far, and whether it was closed early because its
    tokens would not have sufficed."""
    position, token_ids, shortened = JsonPosition(rest_of(schema)), b"", False
    for place, token in enumerate(row):
        if position.done:
            break
        shortened = shortened or position.must_close(limit - place)
        token_ids += vocabulary.bytes[token]
        position.feed(vocabulary.bytes[token])
    return token_ids.decode(errors="replace"), shortened


def _unfit(tokenizer: Any, why: str) -> UsageError:
    return UsageError(
        f"--schema cannot be followed with {type(tokenizer).__name__}: {why}",
        hint="Leave --schema out, or take another model",
    )
