"""A file of the product is one connected idea."""

from scripts.prove.seams import parts_of, seams_of

TWO = """
__all__ = ["first", "second"]
LIMIT = 3
other = second


def first(names: "Names") -> int:
    return LIMIT + len("second")


def second() -> None:
    print("LIMIT")


class Names:
    pass
"""


def test_names_connect_and_texts_do_not() -> None:
    assert parts_of(TWO) == [(5, ["LIMIT", "Names", "first"]), (2, ["second"])]
    assert parts_of(TWO.replace('len("second")', "len(second())"))[0][1] == [
        "LIMIT", "Names", "first", "second"
    ]  # fmt: skip


def test_no_file_holds_two_ideas() -> None:
    assert [*seams_of(40)] == []
