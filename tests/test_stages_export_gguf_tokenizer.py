"""Tokenizers in GGUF files against those of checkpoints. Needs `make gguf`, else skipped."""

import json
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest
from tokenizers import AddedToken, Tokenizer

from penstock_demo import CHECKPOINT
from stages.models.gguf import FILE, MANIFEST
from tests.support.tiny_tokenizers import KINDS, TEKKEN, byte_level, lines, save, split

pytestmark = [pytest.mark.slow, pytest.mark.gguf]


def found_in(folder: Path, work: Path) -> Any:
    """The tokenizer of a folder as GGUF states it, or why it is not written."""
    from stages.export.gguf_tokenizer import tokenizer_of

    rows = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size() + 7
    found = tokenizer_of(folder, rows, work)
    assert list(work.glob("*.gguf")) == []
    return found


def differing(folder: Path, found: Any, work: Path) -> list[str]:
    """Of 1,000 lines those that llama.cpp tokenizes otherwise than the checkpoint."""
    from stages.export.gguf_tokenizer import tokenized

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    # llama.cpp does not compose characters.
    texts = [normalize("NFC", line) for line in lines(1000, 7, *added)]
    return [
        text
        for ends in (False, True)
        for text, ids in zip(texts, tokenized(found, work, texts, ends), strict=True)
        if ids != tokenizer.encode(text, add_special_tokens=ends).ids
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_tokenizes_lines_as_the_checkpoint_does(kind: str, tmp_path: Path) -> None:
    folder = save(KINDS[kind](), tmp_path / "model")
    found = found_in(folder, tmp_path)
    by_bytes = kind not in ("llama", "gemma")
    assert (found.model, found.pre) == (("gpt2", kind) if by_bytes else ("llama", "default"))
    assert differing(folder, found, tmp_path) == []


def test_llama_cpp_tokenizes_lines_as_the_demo_does(tmp_path: Path) -> None:
    found = found_in(CHECKPOINT, tmp_path)
    assert found.pre == "gpt-2"
    assert found.special.chat_template == (CHECKPOINT / "chat_template.jinja").read_text()
    assert differing(CHECKPOINT, found, tmp_path) == []


@pytest.mark.parametrize("pattern", [TEKKEN, r"\w+|\W"])
def test_what_splits_text_in_unknown_ways_fails(pattern: str, tmp_path: Path) -> None:
    folder = save(byte_level(split(pattern)), tmp_path / "model")
    assert found_in(folder, tmp_path) == "what splits text into words is not mapped"


def test_added_tokens_that_llama_cpp_finds_otherwise_fail(tmp_path: Path) -> None:
    made = byte_level()
    made.add_tokens([AddedToken("<wide>", lstrip=True)])
    why = found_in(save(made, tmp_path / "model"), tmp_path)
    assert "otherwise" in why


def test_a_folder_without_a_tokenizer_fails(tmp_path: Path) -> None:
    from stages.export.gguf_tokenizer import tokenizer_of

    assert tokenizer_of(tmp_path, 8, tmp_path) == "there is no tokenizer.json"


def test_an_exported_file_has_the_tokenizer_and_decodes_the_same(tmp_path: Path) -> None:
    import gguf

    from tests.support.tiny_families.in_gguf import TOKENS, judged_in_gguf

    save(KINDS["smollm"](), tmp_path / "whole")
    found = judged_in_gguf("llava:words", tmp_path)
    assert found.agreeing == TOKENS
    manifest = json.loads((tmp_path / "gguf" / MANIFEST).read_text())
    assert manifest["penstock_only"] == ""
    stated = gguf.GGUFReader(tmp_path / "gguf" / FILE).fields
    assert stated["tokenizer.ggml.pre"].contents() == "smollm"
    assert stated["tokenizer.chat_template"].contents() == "{{ messages }}"
