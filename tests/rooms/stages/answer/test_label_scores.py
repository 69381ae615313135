"""The tokens of labels, and which of their beginnings have to be read."""

from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import normalizers

from artifacts.errors import UsageError
from penstock_demo import CHECKPOINT
from stages.answer.label_scores import branches, label_tokens
from stages.models.processors.loading import load_processor


def test_labels_of_one_token_need_no_further_pass() -> None:
    assert branches([(1,), (2,)]) == []


def test_only_beginnings_that_begin_no_other_are_read() -> None:
    assert branches([(1, 2, 3), (1, 2, 4), (1, 5), (6, 7)]) == [(1, 2), (6,)]


def test_every_token_but_the_last_of_a_label_is_read() -> None:
    labels = [(1, 2, 3, 4), (1, 9, 9), (7,)]
    read = {ids[:end] for ids in branches(labels) for end in range(1, len(ids) + 1)}
    assert read == {ids[:end] for ids in labels for end in range(1, len(ids))}


def words_in_small_letters() -> Any:
    """The demo's processor, with a tokenizer that reads texts without regard to capitals."""
    processor = load_processor(CHECKPOINT)
    processor.tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    return processor


END: Any = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=[9, 8]))
"""A half whose turns end with the token 9."""


def test_labels_that_the_model_reads_as_the_same_are_refused() -> None:
    with pytest.raises(UsageError, match="'A cat' and 'a CAT' as the same tokens"):
        label_tokens(END, words_in_small_letters(), ["A cat", "a dog", "a CAT"])


def test_where_one_label_begins_another_all_have_the_end_of_the_turn() -> None:
    processor = load_processor(CHECKPOINT)
    apart = label_tokens(END, processor, ["cat", "dog"])
    nested = label_tokens(END, processor, ["cat", "cat and dog", "dog"])
    assert not apart.is_ended and nested.is_ended
    assert [ids[-1] for ids in nested.ids] == [9, 9, 9]
    assert [nested.ids[0][:-1], nested.ids[2][:-1]] == apart.ids
    assert nested.ids[1][: len(apart.ids[0])] == apart.ids[0]
