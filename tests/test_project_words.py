"""Names, messages and pages use standard terms: the words of the former dialect stay out."""

from scripts import plain_words


def test_no_name_has_a_retired_word() -> None:
    assert plain_words.retired_names() == {}


def test_no_text_and_no_page_has_a_retired_phrase() -> None:
    assert plain_words.retired_phrases() == {}


def test_prose_seldom_has_a_retired_word() -> None:
    _, found = plain_words.all_counts()
    seldom = plain_words.MOST_IN_PROSE
    assert {word: found[word] for word in plain_words.RETIRED if found[word] > seldom} == {}
