"""Small tokenizers of the kinds that language models have, trained on seeded text, and seeded lines
to tokenize."""

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ADDED = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<image>"]
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


def byte_level(
    before: Any = None, normalizer: Any = None, ignore_merges: bool = False, start: bool = False
) -> Tokenizer:
    """A tokenizer of bytes; `before` splits text into words."""
    made = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=before is None)
    parts = [*([] if before is None else [before]), level]
    made.pre_tokenizer = pre_tokenizers.Sequence(parts)
    if normalizer is not None:
        made.normalizer = normalizer
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(lines(600, 1), trainer)
    made.add_special_tokens(ADDED)
    if start:
        first = made.token_to_id("<s>")
        made.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", first)])
    return made


def split(pattern: str) -> Any:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def digits() -> Tokenizer:
    made = byte_level()
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), level])
    return made


def sentences(prefix: bool) -> Tokenizer:
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
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space]) if prefix else space
    made.add_special_tokens(["<unk>", "<s>", "</s>", "<start_of_turn>", "<image>"])
    first = made.token_to_id("<s>")
    made.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", first)])
    return made


KINDS: Mapping[str, Callable[[], Tokenizer]] = {
    "gpt-2": byte_level,
    "smollm": digits,
    "llama-bpe": lambda: byte_level(split(LLAMA3), ignore_merges=True, start=True),
    "smaug-bpe": lambda: byte_level(split(LLAMA3)),
    "qwen2": lambda: byte_level(split(QWEN2), normalizers.NFC()),
    "llama": lambda: sentences(True),
    "gemma": lambda: sentences(False),
}
"""Name → tokenizer: names of llama.cpp for byte-level ones, and two of SentencePiece."""


def save(made: Tokenizer, folder: Path) -> Path:
    """Save a tokenizer as a checkpoint has it."""
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    texts = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": "{{ messages }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(texts))
    return folder


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
