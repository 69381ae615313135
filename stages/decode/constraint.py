"""Restricts the tokens of an answer: to a JSON Schema, and to text without refused phrases.

For a schema, llguidance reports which tokens may come next in each row; all others are masked. An
answer that reaches the token limit is cut. The answer so far is read from the bytes of its tokens,
because a tokenizer's decoding may change spaces.

Words and phrases are kept out of captions by the bytes of tokens, too. A phrase is refused where it
stands alone: behind a character that is no letter, or at the text's start. It is refused with the
token that completes it, unless that token goes on with a letter. So it does not matter how a
tokenizer cuts a phrase and what stands before it. The text so far decides which beginnings of
phrases are open; for each such state the refused tokens are computed once.

The host computes masks from a row's tokens, and applies them to the scores of many rows. One bit
says of one token whether it may come next, so the mask of 151,936 tokens is 19 KB on its way to a
GPU. Applying masks reads nothing from there.
"""

import re
import unicodedata
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import lru_cache
from itertools import cycle
from typing import Any, Generic, NamedTuple, TypeVar

import llguidance
import llguidance.hf
import numpy as np
import torch
from llguidance.numpy import fill_next_token_bitmask_par
from numpy.typing import NDArray
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from artifacts.errors import UsageError
from stages.decode.json_schema import grammar_of
from stages.decode.prompts import end_ids_of
from stages.decode.schema_bounds import BETWEEN, IN_TEXT, JsonPosition, ranks
from stages.memory.oom_retry import release_memory
from stages.models.protocols import Half, Processor

Kept = TypeVar("Kept")
ALL = 0xFF
"""Eight tokens that may all come next."""


class Masks(NamedTuple):
    """The masks of some rows."""

    allowed: NDArray[np.uint8]
    """Which tokens may come next, as an array of bytes of shape [rows, bytes], the first token in
    the lowest bit."""
    closing: NDArray[np.int64] | None = None
    """Row → the token that comes next if no allowed one has a finite score, of shape [rows]; -1:
    none. None: no row has one."""
    faults: Mapping[int, UsageError] = {}
    """Row → why it cannot go on."""

    def at(self, places: Sequence[int], rows: int) -> "Masks":
        """Return the masks of `rows` rows, these at `places` among them."""
        allowed, closing = np.full((rows, self.allowed.shape[1]), ALL, np.uint8), None
        allowed[places] = self.allowed
        if self.closing is not None:
            closing = np.full(rows, -1, np.int64)
            closing[places] = self.closing
        return Masks(allowed, closing)

    def apply(self, scores: torch.Tensor) -> torch.Tensor:
        """Return masked scores, of shape [rows, vocabulary]."""
        bits = torch.arange(8, dtype=torch.uint8, device=scores.device)
        allowed = _on(scores.device, self.allowed).unsqueeze(-1) >> bits & 1
        masked = scores.masked_fill(allowed.flatten(1)[:, : scores.shape[1]] == 0, -torch.inf)
        if self.closing is None:
            return masked
        closing = _on(scores.device, self.closing).unsqueeze(1)
        lost = (masked.amax(1, keepdim=True) == -torch.inf) & (closing >= 0)
        closing = closing.clamp(min=0)
        return masked.scatter(1, closing, torch.where(lost, 0.0, masked.gather(1, closing)))


def _on(device: torch.device, array: NDArray[np.uint8] | NDArray[np.int64]) -> torch.Tensor:
    """Return an array as a tensor on a device. A copy to a GPU waits for nothing there."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


class HostMaskProcessor(LogitsProcessor, ABC, Generic[Kept]):
    """A logits processor whose masks the host computes from the tokens of each row."""

    def __init__(self) -> None:
        self._prompt_length: int | None = None
        """Number of tokens before the first generated one, known from the first call."""
        self.rows: list[Kept] = []
        """What each row of a batch keeps from token to token."""

    @abstractmethod
    def new_row(self) -> Kept:
        """Return what a row keeps before its first token."""

    @staticmethod
    @abstractmethod
    def masks_of(rows: Sequence[Kept], tokens: Sequence[Sequence[int]], width: int) -> Masks:
        """Return the masks of rows, maybe of several processors, after these generated tokens.
        `width` is the number of scores of a row."""

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return masked scores, of shape [rows, vocabulary]. Raises UsageError if a row cannot go
        on."""
        if self._prompt_length is None:
            self._prompt_length = ids.shape[1]
            self.rows = [self.new_row() for _ in ids]
        tokens = ids[:, self._prompt_length :].tolist()
        masks = self.masks_of(self.rows, tokens, scores.shape[1])
        for fault in masks.faults.values():
            raise fault
        return masks.apply(scores)


NEEDED = range(0x20, 0x7F)
"""Bytes that must be tokens of their own: they can spell any JSON text."""
LONG = 1000
"""Rank of the first token of several bytes."""
CHARACTERS = (2, 4, 6, 8, 10, 12, 15, 30)
SLICES = [rf'[^"\\\x00-\x1F\x7F]{{1,{most}}}' for most in CHARACTERS] + [r'[^"\\\x00-\x1F\x7F]+']
"""Tokens of a text by their number of characters. Where a text has room for so many, llguidance
allows them all at once; it tries the others one by one. With its own slices, of 10 and 30, the last
characters of a text took 8 times as long."""


class Vocabulary:
    """One tokenizer's tokens in llguidance's form. Raises UsageError if llguidance fails."""

    def __init__(self, tokenizer: Any) -> None:
        try:
            self.tokens = llguidance.hf.from_tokenizer(tokenizer, slices=SLICES)
        except Exception as error:  # llguidance and tokenizers raise any type
            raise _unfit(tokenizer, str(error)) from error
        count = range(self.tokens.vocab_size)
        self.bytes: list[bytes] = [self.tokens.decode_bytes([token]) for token in count]
        self.singles = np.array([token for token in count if len(self.bytes[token]) == 1])
        """The tokens of one byte, which close an answer before all others."""
        single = {self.bytes[token][0] for token in self.singles}
        if missing := [chr(byte) for byte in NEEDED if byte not in single]:
            raise _unfit(tokenizer, f"it has no token for {' '.join(missing[:5])}")
        self.in_text, self.between = (self._ranked(ranks(first)) for first in (IN_TEXT, BETWEEN))
        release_memory()  # reading needed the same amount again

    def _ranked(self, of_bytes: Sequence[int]) -> NDArray[np.int32]:
        ranked = (of_bytes[b[0]] if len(b) == 1 else LONG + len(b) for b in self.bytes)
        return np.fromiter(ranked, dtype=np.int32, count=len(self.bytes))

    def first_of(self, mask: NDArray[np.uint8], *, in_text: bool) -> int:
        """Return the token of a mask that closes an answer first."""
        ranks = self.in_text if in_text else self.between
        some = self.singles[(mask[self.singles >> 3] >> (self.singles & 7) & 1).astype(bool)]
        if not len(some):  # rare, and 20 times as slow
            some = np.flatnonzero(np.unpackbits(mask, bitorder="little")[: len(ranks)])
        return int(some[ranks[some].argmin()])


@lru_cache(maxsize=1)
def vocabulary_of(tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    """Return the vocabulary of a tokenizer; a large one takes one or two seconds."""
    return Vocabulary(tokenizer)


MAX_LEXERS = 4
"""Most matchers that answers are copied from. Copies of one share its lexer, so their masks wait
for each other; each further lexer learns the states of a grammar anew."""


@lru_cache(maxsize=8)
def _matchers(
    vocabulary: Vocabulary, schema: str, count: int
) -> Iterator[tuple[int, llguidance.LLMatcher]]:
    """Return `count` matchers with their numbers, in an endless cycle."""
    grammar = grammar_of(schema)
    matchers = (llguidance.LLMatcher(vocabulary.tokens, grammar, log_level=0) for _ in range(count))
    return cycle(enumerate(matchers))


@lru_cache(maxsize=1)
def _executor(threads: int) -> llguidance.LLExecutor:
    return llguidance.LLExecutor(num_threads=threads)


class ConstrainedAnswer:
    """An answer that is being generated token by token."""

    def __init__(self, vocabulary: Vocabulary, schema: str, eos_token_ids: Set[int]) -> None:
        self.vocabulary = vocabulary
        self._schema, self._eos_token_ids = schema, eos_token_ids
        self._begin()

    def _begin(self) -> None:
        count = min(torch.get_num_threads(), MAX_LEXERS)
        self.lexer, matcher = next(_matchers(self.vocabulary, self._schema, count))
        self.matcher = matcher.deep_copy()
        self._position = JsonPosition()
        self.token_ids: list[int] = []
        self.fault: UsageError | None = None
        """Why no token can follow."""

    def follow(self, tokens: Sequence[int]) -> None:
        """Read the tokens so far; begin anew if they do not start with those of the last call."""
        if [*tokens[: len(self.token_ids)]] != self.token_ids:
            self._begin()
        for token in tokens[len(self.token_ids) :]:
            self.token_ids.append(token)
            if not self.done and self.fault is None:
                self._position.feed(self.vocabulary.bytes[token])
                if not self.matcher.consume_token(token):
                    self.fault = self._stuck()

    @property
    def done(self) -> bool:
        return self._position.done

    def restrict(self, allowed: NDArray[np.uint8], width: int) -> int:
        """Restrict the mask of llguidance, an array of bytes, to the tokens that may come next, and
        return the one that closes the answer first; -1 after its end token, or if there is none."""
        ends = [end for end in self._eos_token_ids if end < width]
        if self.done:
            ended = self.token_ids[-1] in self._eos_token_ids
            allowed[:] = ALL if ended else 0
            _set_bits(allowed, ends)
            return -1 if ended else min(ends, default=0)
        _clear_bits(allowed, [*ends, *range(width, self.vocabulary.tokens.vocab_size)])
        if self.fault is None and (self.matcher.is_error() or not allowed.any()):
            self.fault = self._stuck()
        if self.fault is not None:
            return -1
        return self.vocabulary.first_of(allowed, in_text=self._position.in_text)

    def _stuck(self) -> UsageError:
        message = " ".join(self.matcher.get_error().split()) or "no token matches"
        text = b"".join(map(self.vocabulary.bytes.__getitem__, self.token_ids[-9:])).decode(
            "utf-8", "replace"
        )
        return UsageError(
            f"--schema allows no token after {text}: {message[:200]}",
            hint="Relax the schema at that place",
        )


def _set_bits(mask: NDArray[np.uint8], tokens: Sequence[int]) -> None:
    for token in tokens:
        mask[token >> 3] |= 1 << (token & 7)


def _clear_bits(mask: NDArray[np.uint8], tokens: Sequence[int]) -> None:
    for token in tokens:
        mask[token >> 3] &= ~(1 << (token & 7)) & ALL


class SchemaLogitsProcessor(HostMaskProcessor[ConstrainedAnswer]):
    """Masks every token that would leave the schema, for each row of a batch. If another processor,
    such as that of --avoid, masked all others, the schema wins."""

    def __init__(self, vocabulary: Vocabulary, schema: str, eos_token_ids: Set[int]) -> None:
        super().__init__()
        self._answer_args = (vocabulary, schema, eos_token_ids)

    def new_row(self) -> ConstrainedAnswer:
        return ConstrainedAnswer(*self._answer_args)

    @staticmethod
    def masks_of(
        rows: Sequence[ConstrainedAnswer], tokens: Sequence[Sequence[int]], width: int
    ) -> Masks:
        """Return the masks of answers; llguidance computes several at once."""
        known = rows[0].vocabulary.tokens.vocab_size
        words = np.zeros((len(rows), -(-known // 32)), dtype=np.int32)
        for answer, token_ids in zip(rows, tokens, strict=True):
            answer.follow(token_ids)
        unfinished = [row for row, answer in enumerate(rows) if not (answer.done or answer.fault)]
        unfinished.sort(key=lambda row: rows[row].lexer)  # each thread takes neighbours
        if matchers := [(rows[row].matcher, row) for row in unfinished]:
            fill_next_token_bitmask_par(_executor(torch.get_num_threads()), matchers, words)
        allowed = words.view(np.uint8)
        if (more := -(-width // 8) - allowed.shape[1]) > 0:
            allowed = np.pad(allowed, ((0, 0), (0, more)))
        pairs = zip(rows, allowed, strict=True)
        closing = np.array([answer.restrict(mask, width) for answer, mask in pairs], dtype=np.int64)
        faults = {row: answer.fault for row, answer in enumerate(rows) if answer.fault}
        return Masks(allowed, closing, faults)


def eos_ids_of(half: Half, processor: Processor) -> frozenset[int]:
    """Return the end tokens of a caption. Raises UsageError if there are none."""
    if not (end_ids := end_ids_of(half)):
        raise _unfit(processor.tokenizer, "the model has no token that ends a caption")
    return frozenset(end_ids)


def answer_text(vocabulary: Vocabulary, row: Sequence[int]) -> str:
    """Return the text of an answer's tokens."""
    position, text = JsonPosition(), b""
    for token in row:
        if position.done:
            break
        text += vocabulary.bytes[token]
        position.feed(vocabulary.bytes[token])
    return text.decode(errors="replace")


def _unfit(tokenizer: PreTrainedTokenizerBase, why: str) -> UsageError:
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
    """Return the bytes that each token adds to a text; none for special tokens."""
    try:
        by_token = list(vocabulary_of(tokenizer).bytes)
    except UsageError:  # such as one of word pieces, whose decoder puts blanks between words
        first = tokenizer.encode(".", add_special_tokens=False)[-1:]
        before = tokenizer.decode(first)
        pairs = [[*first, token] for token in range(len(tokenizer))]
        options = {"clean_up_tokenization_spaces": False}
        texts = tokenizer.batch_decode(pairs, **options)
        by_token = [text.removeprefix(before).encode() for text in texts]
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    for token in special.union(tokenizer.all_special_ids):
        if token < len(by_token):
            by_token[token] = b""
    return by_token


class AvoidedPhrases:
    """The phrases that one tokenizer's tokens must not spell."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, phrases: Sequence[str]) -> None:
        self.bytes = token_bytes(tokenizer)
        variants = {form for text in phrases for form in (text, text[:1].upper() + text[1:])}
        self._phrases = {
            form.encode(): (is_letter(form[0]), is_letter(form[-1])) for form in sorted(variants)
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
        self._allowed: dict[tuple[tuple[bytes, bool], ...], NDArray[np.uint8]] = {}

    def allowed(self, text: bytes) -> NDArray[np.uint8]:
        """Return which tokens may follow a text, one bit each, as an array of bytes. The last bytes
        of the text suffice."""
        text = text[-self.longest - CHARACTER :]
        state = []
        for at in range(len(text) + 1):
            if text[at:] in self._open:
                state.append((text[at:], not is_letter(_last(text[:at]))))
        key = tuple(state)
        if key not in self._allowed:
            if len(self._allowed) >= STATES:
                self._allowed.clear()
            completing = {t for beginning in state for t in self._completing(*beginning)}
            self._allowed[key] = np.full(-(-len(self.bytes) // 8), ALL, np.uint8)
            _clear_bits(self._allowed[key], [*completing, *self._within])
        return self._allowed[key]

    def _completing(self, beginning: bytes, alone: bool) -> Iterator[int]:
        """Yield the tokens that complete a phrase; `alone`: no letter stands before `beginning`."""
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
def avoided(tokenizer: PreTrainedTokenizerBase, phrases: tuple[str, ...]) -> AvoidedPhrases:
    """Return the phrases for a tokenizer; a large one takes a second or two."""
    return AvoidedPhrases(tokenizer, [text.strip() for text in phrases])


class AvoidedLogitsProcessor(HostMaskProcessor[tuple[AvoidedPhrases, bytes]]):
    """Refuses every token that would complete a phrase, for each row of a batch."""

    def __init__(self, phrases: AvoidedPhrases, start: str) -> None:
        """`start` is the forced beginning of captions; it is not judged."""
        super().__init__()
        self._phrases, self._start = phrases, start.encode()

    def new_row(self) -> tuple[AvoidedPhrases, bytes]:
        return self._phrases, self._start

    @staticmethod
    def masks_of(
        rows: Sequence[tuple[AvoidedPhrases, bytes]], tokens: Sequence[Sequence[int]], width: int
    ) -> Masks:
        """Return the masks of rows, each with its phrases and its forced beginning."""
        allowed = np.full((len(rows), -(-width // 8)), ALL, np.uint8)
        for mask, (phrases, start), token_ids in zip(allowed, rows, tokens, strict=True):
            spelled = phrases.bytes
            known = (spelled[token] for token in token_ids if token < len(spelled))
            bits = phrases.allowed(start + b"".join(known))[: len(mask)]
            mask[: len(bits)] = bits
        return Masks(allowed)


def _first(text: bytes) -> str:
    return text[:CHARACTER].decode(errors="ignore")[:1]


def _last(text: bytes) -> str:
    # What follows the first bytes of a character that is never completed stands alone.
    return text[-CHARACTER:].decode(errors="replace")[-1:]
