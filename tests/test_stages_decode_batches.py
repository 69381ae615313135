"""Batches of what a job lacks: cut to another size they are those of that size, and chunks of which
much was said before come first."""

from pathlib import Path
from typing import Any

from artifacts.packs import Record, RecordSet
from artifacts.store import open_store
from stages.decode.batches import in_pieces, lacking, swapped, talkative_first


def members(*keys: str) -> list[dict[str, str]]:
    return [{"key": key, "instead": key.upper()} for key in keys]


def keys(batches: Any) -> list[str]:
    return ["".join(member["key"] for member in batch) for batch in batches]


BATCHES = [members(*"abcd"), members(*"efg")]


def test_a_batch_is_cut_as_if_it_had_been_chosen_so() -> None:
    assert keys(in_pieces(BATCHES, 2)) == ["ab", "cd", "ef", "g"]
    assert in_pieces(BATCHES, 0) == BATCHES


def test_who_was_talkative_comes_first_and_after_those_of_whom_nothing_is_known() -> None:
    said = {"a": 3, "b": 30, "d": 12, "f": 30}
    assert keys(talkative_first(BATCHES, said)) == ["bcef", "gda"]
    assert talkative_first(BATCHES, {"z": 9}) == BATCHES


def test_what_has_a_caption_under_either_key_is_not_lacking(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    ours, theirs = (RecordSet(store, "captions", name * 32) for name in ("aa", "bb"))
    ours.publish([Record(key="b", meta={})])
    theirs.publish([Record(key="C", meta={})])
    assert lacking(BATCHES[0], [ours, theirs]) == ["a", "d"]
    assert lacking(swapped(BATCHES)[0], [theirs, ours]) == ["A", "D"]
    assert lacking(BATCHES[0], [ours]) == ["a", "c", "d"]
