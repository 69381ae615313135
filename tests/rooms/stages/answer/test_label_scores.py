"""The tokens of labels, and which of their beginnings have to be read."""

from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from artifacts.errors import UsageError
from stages.answer.label_scores import branches, label_tokens


def test_labels_of_one_token_need_no_further_pass() -> None:
    assert branches([(1,), (2,)]) == []


def test_only_beginnings_that_begin_no_other_are_read() -> None:
    assert branches([(1, 2, 3), (1, 2, 4), (1, 5), (6, 7)]) == [(1, 2), (6,)]


def test_every_token_but_the_last_of_a_label_is_read() -> None:
    labels = [(1, 2, 3, 4), (1, 9, 9), (7,)]
    read = {ids[:end] for ids in branches(labels) for end in range(1, len(ids) + 1)}
    assert read == {ids[:end] for ids in labels for end in range(1, len(ids))}


class Bare:
    """An object with these attributes."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


def words_in_small_letters() -> Any:
    """A processor whose tokenizer reads words without regard to capitals."""
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "cat": 1, "dog": 2, "?": 3}, unk_token="?"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    own = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?")
    return Bare(tokenizer=own, chat_template=None)


END: Any = Bare(generation_config=Bare(eos_token_id=[9, 8]))
"""A half whose turns end with the token 9."""


def test_labels_that_the_model_reads_as_the_same_are_refused() -> None:
    with pytest.raises(UsageError, match="'A cat' and 'a CAT' as the same tokens"):
        label_tokens(END, words_in_small_letters(), ["A cat", "a dog", "a CAT"])


def test_where_one_label_begins_another_all_have_the_end_of_the_turn() -> None:
    processor = words_in_small_letters()
    assert label_tokens(END, processor, ["cat", "dog"]) == ([(1,), (2,)], False)
    assert label_tokens(END, processor, ["a", "a dog"]) == ([(0, 9), (0, 2, 9)], True)
