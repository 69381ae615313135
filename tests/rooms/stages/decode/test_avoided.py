"""Words and phrases that are avoided never stand alone in a text, however a tokenizer cuts them and
whatever stands before them; a regular expression over the decoded text judges."""

import random
import re
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LogitsProcessorList, PreTrainedTokenizerFast

from penstock_demo import CHECKPOINT
from stages.decode.constraint import AvoidedLogitsProcessor, avoided, token_bytes
from stages.decode.generate_kwargs import GenerateKwargs
from stages.decode.generation import DecodeItem, SamplingParams
from stages.models.processors.loading import load_processor
from tests.support.clips import half_model

PIECES = (
    "image", "▁image", "im", "▁im", "age", "s", "▁", "(", '"', "-", "(image", "images", "▁a", "x",
    "ery", "Image", "▁the", "▁of", ".", "é", "<0x0A>", "<0xE2>", "<0x80>", "<0x9C>", "图", "像",
)  # fmt: skip
PHRASES = ("image", "the image of", "图像")
STANDS = re.compile(r"(?<![^\W\d_])([iI]mage(?![^\W\d_])|[tT]he image of(?![^\W\d_]))|图像")


def sentence_pieces() -> PreTrainedTokenizerFast:
    """A tokenizer in the manner of SentencePiece: a blank is part of the word behind it."""
    singles = sorted({chr(code) for code in range(0x21, 0x7F)} - {*PIECES})
    vocabulary = [("<unk>", 0.0), *((piece, -1.0) for piece in (*PIECES, *singles))]
    made = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence(steps)
    made.add_special_tokens([AddedToken("<end>", special=True), AddedToken("image|", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", unk_token="<unk>")


def word_pieces() -> PreTrainedTokenizerFast:
    """A tokenizer in the manner of BERT: its decoder puts blanks between words."""
    words = ["[UNK]", "image", "im", "##age", "##s", "a", "the", "of", ".", "(", "-", "images"]
    made = Tokenizer(models.WordPiece({w: at for at, w in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]")


def written(tokenizer: Any, rng: random.Random, avoid: tuple[str, ...]) -> str:
    """A text of tokens at random among those that are allowed."""
    half: Any = half_model(CHECKPOINT, "language")
    processor: Any = load_processor(CHECKPOINT, trusted=False)
    processor.tokenizer = tokenizer
    kwargs = GenerateKwargs(SamplingParams(avoid=avoid), 99)
    options = kwargs.options(half, processor, [DecodeItem("", "f", "p")])
    processors: Any = options.get("logits_processor") or LogitsProcessorList()
    prompt, tokens = [0, 0, 0], list[int]()
    usual = [token for token in range(len(tokenizer)) if token_bytes(tokenizer)[token]]
    for _ in range(12):
        scores = torch.zeros(1, len(tokenizer) + 5)
        allowed = torch.isfinite(processors(torch.tensor([prompt + tokens]), scores))[0]
        likely = usual[: len(PIECES) + 1] if rng.random() < 0.9 else usual
        tokens.append(rng.choice([token for token in likely if allowed[token]]))
    return str(tokenizer.decode(tokens))


@pytest.mark.slow
@pytest.mark.parametrize("make", [sentence_pieces, word_pieces])
def test_a_phrase_never_stands_alone(make: Any) -> None:
    tokenizer, rng = make(), random.Random(1)
    assert any(STANDS.search(written(tokenizer, rng, ("nothing",))) for _ in range(40))
    texts = [written(tokenizer, rng, PHRASES) for _ in range(300)]
    assert not (found := [text for text in texts if STANDS.search(text)]), found[:5]
    longer = re.compile(r"images|ximage|imery|age", re.IGNORECASE)
    assert any(longer.search(text) for text in texts)


@pytest.mark.parametrize(
    ("before", "token", "refused"),
    [
        ("", "image", True), ("", "▁image", True), ("", "Image", True), ("a (", "image", True),
        ("the", "▁image", True), ('"', "image", True), ("-", "image", True), ("\n", "image", True),
        ("“", "image", True), ("2", "image", True), (" im", "age", True), ("xim", "age", False),
        ("x", "image", False), ("é", "image", False), ("", "images", False), (" ", "(image", True),
        ("一张图", "像", True), ("", "im", False), ("image", "s", False), ("", "image|", False),
    ],
)  # fmt: skip
def test_a_token_is_refused_where_it_completes_a_phrase(
    before: str, token: str, refused: bool
) -> None:
    tokenizer = sentence_pieces()
    allowed = np.unpackbits(avoided(tokenizer, PHRASES).allowed(before.encode()), bitorder="little")
    assert allowed[tokenizer.convert_tokens_to_ids(token)] == (not refused)


def test_the_forced_beginning_is_not_judged_and_still_goes_on() -> None:
    tokenizer = sentence_pieces()
    phrases, ids = avoided(tokenizer, ("image",)), torch.zeros(1, 3, dtype=torch.long)
    whole, half = (tokenizer.convert_tokens_to_ids(each) for each in ("image", "age"))
    scores = torch.zeros(1, len(tokenizer))
    cases = {"An im": [True, False], "An image x": [True, True], "": [False, True]}
    for start, allowed in cases.items():
        found = torch.isfinite(AvoidedLogitsProcessor(phrases, start)(ids, scores))[0]
        assert [bool(found[whole]), bool(found[half])] == allowed, start


def test_only_keys_of_captions_that_avoid_phrases_name_how() -> None:
    (fields,) = SamplingParams(avoid=("a",)).key_fields
    assert dict(fields) == {"avoid": ["a"], "avoided_by": "bytes"}
    assert SamplingParams(avoid=("a",)).non_defaults == {"avoid": ["a"]}
    assert SamplingParams().key_fields == []
