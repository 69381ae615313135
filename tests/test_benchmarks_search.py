"""The benchmark of searches runs, and compares ways that find the same."""

import re
import sys

import pytest

from benchmarks import search, search_query


def test_it_compares_both_ways(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["search.py", "--rows", "2000", "--queries", "2"])
    search.main()
    printed = capfd.readouterr().out
    assert re.findall(r"^2,000 rows of 768", printed, re.MULTILINE)
    assert len(re.findall(r"ratio +[\d.]+ +recall@10 1.0000", printed)) == 2
    assert len(re.findall(r"^exactly, .* ms CPU$", printed, re.MULTILINE)) == 2
    assert "1000 rows added" in printed


@pytest.mark.slow
def test_a_text_query_is_cheaper_in_numpy(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["search_query.py", "--rows", "100", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", words)
    search_query.main()
    (ratio,) = re.findall(r"^ratio ([\d.]+)$", capfd.readouterr().out, re.MULTILINE)
    assert float(ratio) >= 2
