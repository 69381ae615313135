"""A file of the product is one connected idea."""

import ast

from scripts.prove.seams import parts_of, seam_of
from tests.support.sources import PRODUCT, sources

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
    assert parts_of(ast.parse(TWO)) == [(5, ["LIMIT", "Names", "first"]), (2, ["second"])]
    one = ast.parse(TWO.replace('len("second")', "len(second())"))
    assert parts_of(one)[0][1] == ["LIMIT", "Names", "first", "second"]


def test_no_file_holds_two_ideas() -> None:
    assert [source.path for source in sources(*PRODUCT) if seam_of(source.tree, 40)] == []
