"""Small tokenizers of the kinds that language models have, trained on seeded text, and seeded lines
to tokenize."""

import random
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEXT = (
    "the quick brown fox jumps over lazy dogs can't WE'LL don't it's def return class import "
    "self.x == None i += 1 != 0x1F // {} [] () lambda: 12 345 6789 3.14 1,000 2026 v2.0 "
    "Größe naïve café Ελληνικά Русский язык עברית العربية हिन्दी ไทย 日本語 中文字符 한국어 "
    "😀 🏳️‍🌈 👩🏽‍🚀 ♥ ½ ² ∑ → ﬁ ... !!! ??? -- __init__ snake_case CamelCase https://a.b/c?d=e&f"
)
WORDS = _TEXT.split()
SPACES = (" ", " ", " ", "", "  ", "   ", "\t", "\n", "\n\n", " \n ", "\r\n", "\u00a0", "\u3000")


def lines(count: int, seed: int, *more: str) -> list[str]:
    """Seeded lines of words, spaces of many kinds, and the tokens `more`."""
    draw = random.Random(seed)
    choices = [*WORDS, *more, *more]
    return [
        "".join(
            draw.choice(choices) + draw.choice(SPACES) for _ in range(draw.randrange(1, 14))
        ).strip("\n" if draw.random() < 0.5 else None)
        for _ in range(count)
    ]


def split(pattern: str) -> Any:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def sentences() -> Tokenizer:
    """A tokenizer as one of SentencePiece's is converted: bytes for what it does not know, and a
    merge for each way to make a token of two others."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trained.train_from_iterator(lines(600, 1), BpeTrainer(vocab_size=700, show_progress=False))
    learnt = [t for t, _ in sorted(trained.get_vocab().items(), key=lambda pair: pair[1])]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [*(t for t in learnt if len(t) > 1), *(t for t in learnt if len(t) == 1)]
    ids = {token: at for at, token in enumerate(tokens)}
    merges = [
        (token[:at], token[at:])
        for token in tokens[259:]
        for at in range(1, len(token))
        if token[:at] in ids and token[at:] in ids
    ]
    made = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    space = normalizers.Replace(" ", "▁")
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space])
    made.add_special_tokens(["<unk>", "<s>", "</s>", "<start_of_turn>", "<image>"])
    first = made.token_to_id("<s>")
    made.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", first)])
    return made


MARKS = ('"', '",', '":', ".", ",", "-")
MARKED = 0.02
"""Share of tokens with a mark, as in vocabularies of Qwen."""


def joined_tokenizer(count: int, rng: random.Random) -> Any:
    """Return a tokenizer of `count` tokens, which join others as trained ones do, and one that ends
    an answer."""
    from transformers import PreTrainedTokenizerFast

    letters = pre_tokenizers.ByteLevel.alphabet()
    words = dict.fromkeys([*sorted(letters), *(f"Ġ{letter}" for letter in "abcdefghijklmnop")])
    parts = list("etaoinshrdlucmfwyp")
    while len(words) < count - 1:
        joined = rng.choice(parts) + rng.choice(parts)
        if len(joined) <= 7:
            parts.append(joined)
        if rng.random() < MARKED:
            joined = rng.choice((joined + rng.choice(MARKS), rng.choice(MARKS) + joined))
        words[joined] = None
    made = Tokenizer(models.BPE({word: at for at, word in enumerate(words)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<end>"])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>")
