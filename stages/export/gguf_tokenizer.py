"""Writes a checkpoint's tokenizer into a GGUF file, if llama.cpp tokenizes as the checkpoint does.

1. The kind of the vocabulary and, for byte-level BPE, what splits text into words are looked up.
2. A file with nothing but the tokenizer is written. llama.cpp loads it and tokenizes lines of many
   kinds, every added token among them.
3. Only if all of them agree, the tokenizer goes into the file of the model.
"""

import ctypes
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gguf
from tokenizers import Tokenizer

from artifacts.files import HALF
from stages.models.gguf.library import last_words, library
from stages.models.hub.checkpoint import GENERATION, read_config

NAME = "tokenizer.json"
ENDS_STATED = ("eos", "eot", "eom")
"""Tokens of a file at which llama.cpp ends an answer: of a text, a turn and a message."""
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
ENDS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = CONTRACTIONS + r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + ENDS
SPLITS: Mapping[tuple[str, bool], str] = {
    (LLAMA3, True): "llama-bpe",
    (LLAMA3, False): "smaug-bpe",
    (LLAMA3.replace("{1,3}", ""), False): "qwen2",
}
"""Regular expression of a tokenizer.json, and whether words of the vocabulary need no merges → what
llama.cpp calls them."""
PROBE = (
    "The quick brown fox can't jump; it's 12345.6789 and WE'LL see, don't we?",
    "  two   spaces\tand\ttabs \n\n new  lines\r\n  at the end   ",
    "def f(x: int) -> str:\n    return f'{x!r}'  # 0x1F == 31\n\t\tpass",
    "Größe, naïve, Ελληνικά, Русский язык, עברית, العربية 123",
    "日本語のテキスト、中文字符。한국어 문장 हिन्दी ไทย",
    "😀 🏳️‍🌈 👩🏽‍🚀 ♥ ½ ² ∑ → ﬁ",
    "CamelCase snake_case kebab-case UPPER lower 3.14e-10 1,000,000 v2.0",
    "a  b   c    d     e\u00a0f\u2003g ...!!! ???",
    "<html> </s> <s> [INST] {{template}} ▁ Ġ Ċ",
    "",
    " ",
    "x",
)
"""Lines of many kinds, in composed Unicode."""


class GgufTokenizer(NamedTuple):
    """A tokenizer as GGUF states it."""

    model: str
    pre: str
    """What splits text into words."""
    tokens: list[str]
    types: list[int]
    scores: list[float]
    merges: list[str]
    prefix: bool
    """Whether a space is put before text."""
    special: Any = None
    """The special tokens and the chat template: a SpecialVocab."""

    def add_to(self, writer: Any) -> None:
        """Write it to a GGUFWriter."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.merges:
            writer.add_token_merges(self.merges)
        else:
            writer.add_token_scores(self.scores)
            writer.add_add_space_prefix(self.prefix)
        self.special.add_to_gguf(writer, quiet=True)


def tokenizer_of(source: Path, rows: int, work: Path) -> GgufTokenizer | str:
    """Return the tokenizer of a checkpoint for an embedding of so many rows, or why it has no place
    in a GGUF file. `work`: a folder for a file that is removed again."""
    if not (source / NAME).exists():
        return f"there is no {NAME}"
    stated = json.loads((source / NAME).read_text("utf-8"))
    found = _tokenizer(stated, rows)
    if isinstance(found, str):
        return found
    found = found._replace(special=special_vocab(source, rows))
    wanted = Tokenizer.from_file(str(source / NAME))
    wanted.no_padding()
    wanted.no_truncation()
    lines = [*PROBE, *("a{0}b {0} c".format(each["content"]) for each in stated["added_tokens"])]
    for ends in (False, True):
        ids = tokenized(found, work, lines, ends)
        if isinstance(ids, str):
            return ids
        for line, made in zip(lines, ids, strict=True):
            if made != wanted.encode(line, add_special_tokens=ends).ids:
                return f"llama.cpp tokenizes {line[:20]!r} otherwise"
    return found


def special_vocab(source: Path, rows: int) -> Any:
    """Return the special tokens and the chat template of a checkpoint. llama.cpp ends an answer at
    three tokens that a file states, and at some that it knows by name; gguf's own reader takes only
    the tokenizer's end, and generation_config.json may state more."""
    special = gguf.SpecialVocab(source, n_vocab=rows)
    special.add_special_token = {"bos": False, "eos": False} | special.add_special_token
    stated, places = read_config(source, GENERATION).get("eos_token_id"), special.special_token_ids
    ends = [end for end in (stated if isinstance(stated, list) else [stated]) if type(end) is int]
    known = {places.get(place) for place in ENDS_STATED}
    free = [place for place in ENDS_STATED if place not in places]
    more = [end for end in dict.fromkeys(ends) if 0 <= end < rows and end not in known]
    places.update(zip(free, more, strict=False))
    return special


def tokenized(
    tokenizer: GgufTokenizer, work: Path, lines: Sequence[str], ends: bool
) -> list[list[int]] | str:
    """Return the tokens of lines in llama.cpp, those that start and end a text included if `ends`;
    or why it cannot load the tokenizer. The file for that is removed."""
    api, path = library(), work / f"{HALF}tokenizer.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    tokenizer.add_to(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    parameters = api.llama_model_default_params()
    parameters.vocab_only = True
    last_words()
    model = api.llama_model_load_from_file(os.fsencode(path), parameters)
    path.unlink()
    if not model:
        return f"llama.cpp cannot load it: {last_words()}"
    found = []
    for text in map(str.encode, lines):
        room = len(text) + 8
        ids, vocab = (ctypes.c_int32 * room)(), api.llama_model_get_vocab(model)
        count = api.llama_tokenize(vocab, text, len(text), ids, room, ends, True)
        found.append(ids[: max(0, count)])
    api.llama_model_free(model)
    return found


def _tokenizer(stated: Mapping[str, Any], rows: int) -> GgufTokenizer | str:
    """Return what is in a tokenizer.json, or why it is not mapped."""
    model = stated["model"]
    if model.get("type") != "BPE" or model.get("dropout"):
        return f"its vocabulary is {model.get('type')}, not BPE"
    ids = {**model["vocab"], **{each["content"]: each["id"] for each in stated["added_tokens"]}}
    if len(set(ids.values())) != len(ids) or max(ids.values()) >= rows:
        return "its tokens are not those of the embedding"
    names = [f"[PAD{at}]" for at in range(rows)]
    types = [int(gguf.TokenType.UNUSED)] * rows
    for name, at in ids.items():
        names[at], types[at] = name, int(gguf.TokenType.NORMAL)
    if len(set(names)) != rows:
        return "some of its tokens have the same name"
    for each in stated["added_tokens"]:
        kind = gguf.TokenType.CONTROL if each["special"] else gguf.TokenType.USER_DEFINED
        types[each["id"]] = int(kind)
    pairs = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    if model.get("byte_fallback"):
        return _sentences(stated, names, types, pairs)
    pre = _splits(stated)
    if not pre:
        return "what splits text into words is not mapped"
    merges = [" ".join(part.replace(" ", "Ġ") for part in pair) for pair in pairs]
    return GgufTokenizer("gpt2", pre, names, types, [], merges, False)


def _sentences(
    stated: Mapping[str, Any], names: list[str], types: list[int], pairs: Sequence[tuple[str, ...]]
) -> GgufTokenizer | str:
    """Return what is in a vocabulary of SentencePiece. Its tokenizer.json has merges in the order
    of scores, so a token's score is the place of its first merge."""
    text = json.dumps([stated.get("normalizer"), stated.get("pre_tokenizer")])
    if "Regex" in text or "Precompiled" in text:
        return "its text is normalized in ways that are not mapped"
    places: dict[str, int] = {}
    for place, pair in enumerate(pairs):
        places.setdefault("".join(pair), place)
    scores = [-float(places.get(name, len(pairs))) for name in names]
    unknown = stated["model"].get("unk_token")
    for at, name in enumerate(names):
        if len(name) == 6 and name.startswith("<0x"):
            types[at] = int(gguf.TokenType.BYTE)
        elif name == unknown:
            types[at] = int(gguf.TokenType.UNKNOWN)
        elif types[at] == gguf.TokenType.USER_DEFINED:
            names[at] = name.replace("▁", " ")
    prefix = "Prepend" in text or ("Metaspace" in text and '"never"' not in text)
    return GgufTokenizer("llama", "default", names, types, scores, [], prefix)


def _splits(stated: Mapping[str, Any]) -> str:
    """Return what llama.cpp calls that which splits text into words; empty if it is not mapped."""
    given = stated.get("pre_tokenizer") or {}
    *before, level = given.get("pretokenizers") or [given]
    by_regex = level.get("use_regex", True)
    known = (stated.get("normalizer") or {"type": "NFC"}) == {"type": "NFC"}
    if not known or level.get("type") != "ByteLevel" or level.get("add_prefix_space"):
        return ""
    if not before or before == [{"type": "Digits", "individual_digits": True}]:
        return ("smollm" if before else "gpt-2") if by_regex else ""
    first = before[0]
    pattern = (first.get("pattern") or {}).get("Regex", "")
    if len(before) > 1 or by_regex or first.get("behavior") != "Isolated" or first.get("invert"):
        return ""
    return SPLITS.get((pattern, bool(stated["model"].get("ignore_merges"))), "")
