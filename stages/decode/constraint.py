"""Restricts the tokens of an answer: to a JSON Schema, and to text without refused phrases.

For a schema, llguidance reports which tokens may come next in each row; all others are masked. When
few tokens are left, only tokens that close the answer are allowed (`schema_bounds.py`), so every
answer is complete. The answer so far is read from the bytes of its tokens, because a tokenizer's
decoding may change spaces.

Words and phrases are kept out of captions by the bytes of tokens, too. A phrase is refused where it
stands alone: behind a character that is no letter, or at the text's start. It is refused with the
token that completes it, unless that token goes on with a letter. So it does not matter how a
tokenizer cuts a phrase and what stands before it. The text so far decides which beginnings of
phrases are open; for each such state the refused tokens are computed once.
"""

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterator, Sequence, Set
from functools import lru_cache
from typing import Any

import llguidance
import llguidance.hf
import numpy as np
import torch
from transformers import LogitsProcessor

from artifacts.errors import UsageError
from stages.decode.json_schema import grammar_of, rest_of
from stages.decode.prompts import end_ids_of
from stages.decode.schema_bounds import BETWEEN, IN_TEXT, JsonPosition, ranks
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


UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\ua4cf\uac00-\ud7ff\uf900-\ufaff"
    "\U00020000-\U0003ffff]"
)
"""Characters of scripts that write words without blanks between them: they end no word."""
CHARACTER = 4
"""Most bytes of a character."""
STATES = 512
"""States whose refused tokens are kept; a caption of a hundred tokens meets a few."""


def is_letter(character: str) -> bool:
    """Return whether a character continues the word before it; empty: it does not."""
    return unicodedata.category(character or " ")[0] in "LM" and not UNSPACED.match(character)


@lru_cache(maxsize=1)
def token_bytes(tokenizer: Any) -> list[bytes]:
    """Return the bytes that each token adds to a text; none for special tokens, which decoding
    removes."""
    try:
        found = list(vocabulary_of(tokenizer).bytes)
    except UsageError:  # such as one of word pieces, whose decoder puts blanks between words
        first = tokenizer.encode(".", add_special_tokens=False)[-1:]
        before = tokenizer.decode(first)
        pairs = [[*first, token] for token in range(len(tokenizer))]
        options = {"clean_up_tokenization_spaces": False}
        texts = tokenizer.batch_decode(pairs, **options)
        found = [text.removeprefix(before).encode() for text in texts]
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    for token in special.union(tokenizer.all_special_ids):
        if token < len(found):
            found[token] = b""
    return found


class AvoidedPhrases:
    """The phrases that one tokenizer's tokens must not spell."""

    def __init__(self, tokenizer: Any, phrases: Sequence[str]) -> None:
        self.bytes = token_bytes(tokenizer)
        variants = {form for text in phrases for form in (text, text[:1].upper() + text[1:])}
        self._phrases = {
            each.encode(): (is_letter(each[0]), is_letter(each[-1])) for each in sorted(variants)
        }
        """Bytes of a phrase → whether its first and last characters are letters."""
        self.longest = max(map(len, self._phrases))
        self._open = {phrase[:at] for phrase in self._phrases for at in range(len(phrase))}
        order = sorted(range(len(self.bytes)), key=self.bytes.__getitem__)
        self._order, self._sorted = order, [self.bytes[token] for token in order]
        some = re.compile(b"|".join(map(re.escape, self._phrases)))
        self._within = {
            token for token, text in enumerate(self.bytes) if some.search(text) and self._in(text)
        }
        """Tokens that hold a phrase behind their first character."""
        self._refused: dict[tuple[tuple[bytes, bool], ...], torch.Tensor] = {}

    def refused(self, text: bytes) -> torch.Tensor:
        """Return the tokens that must not follow a text. Its last bytes suffice."""
        text = text[-self.longest - CHARACTER :]
        state = []
        for at in range(len(text) + 1):
            if text[at:] in self._open:
                state.append((text[at:], not is_letter(_last(text[:at]))))
        key = tuple(state)
        if key not in self._refused:
            if len(self._refused) >= STATES:
                self._refused.clear()
            found = {t for beginning in state for t in self._completing(*beginning)}
            self._refused[key] = torch.tensor(sorted(found | self._within), dtype=torch.long)
        return self._refused[key]

    def _completing(self, beginning: bytes, alone: bool) -> Iterator[int]:
        """Yield the tokens that complete a phrase with this `beginning`. `alone`: no letter stands
        before it."""
        for phrase, (begins, ends) in self._phrases.items():
            if phrase.startswith(beginning) and phrase != beginning and (alone or not begins):
                rest = phrase[len(beginning) :]
                at = bisect_left(self._sorted, rest)
                while at < len(self._sorted) and self._sorted[at].startswith(rest):
                    if not (ends and is_letter(_first(self._sorted[at][len(rest) :]))):
                        yield self._order[at]
                    at += 1

    def _in(self, text: bytes) -> bool:
        """Return whether the text of a token holds a phrase alone behind its first byte."""
        for phrase, (begins, ends) in self._phrases.items():
            at = text.find(phrase, 1)
            while at > 0:
                after = text[at + len(phrase) :]
                is_alone = not (begins and is_letter(_last(text[:at])))
                if is_alone and not (ends and is_letter(_first(after))):
                    return True
                at = text.find(phrase, at + 1)
        return False


@lru_cache(maxsize=2)
def avoided(tokenizer: Any, phrases: tuple[str, ...]) -> AvoidedPhrases:
    """Return the phrases for a tokenizer; a large one takes a second or two."""
    return AvoidedPhrases(tokenizer, [text.strip() for text in phrases])


class AvoidedLogitsProcessor(LogitsProcessor):
    """Refuses every token that would complete a phrase, for each row of a batch."""

    def __init__(self, phrases: AvoidedPhrases, start: str) -> None:
        """`start` is the forced beginning of captions; it is not judged."""
        self._phrases, self._start = phrases, start.encode()
        self._prompt_length: int | None = None
        """Number of tokens before the first generated one, known from the first call."""

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return masked scores, of shape [rows, vocabulary]."""
        if self._prompt_length is None:
            self._prompt_length = ids.shape[1]
        found, width, spelled = scores.clone(), scores.shape[1], self._phrases.bytes
        for row, tokens in enumerate(ids[:, self._prompt_length :].tolist()):
            known = (spelled[token] for token in tokens if token < len(spelled))
            refused = self._phrases.refused(self._start + b"".join(known))
            found[row, refused[refused < width].to(scores.device)] = -torch.inf
        return found


def _first(text: bytes) -> str:
    return text[:CHARACTER].decode(errors="ignore")[:1]


def _last(text: bytes) -> str:
    # What follows the first bytes of a character that is never completed stands alone.
    return text[-CHARACTER:].decode(errors="replace")[-1:]
