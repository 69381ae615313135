"""Keeps words and phrases out of captions, by the bytes of tokens.

A phrase is refused where it stands alone: behind a character that is no letter, or at the text's
start. It is refused with the token that completes it, unless that token goes on with a letter. So
it does not matter how a tokenizer cuts a phrase and what stands before it.

The text so far decides which beginnings of phrases are open; for each such state the refused tokens
are found once.
"""

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
from transformers import LogitsProcessor

from artifacts.errors import UsageError
from stages.decode.constraint import vocabulary_of

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
