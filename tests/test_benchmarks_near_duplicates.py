"""The benchmark of near duplicates runs, and finds the groups that it plants."""

import re
import sys

import pytest

from benchmarks import near_duplicates


def test_it_compares_with_a_package_alone(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["near_duplicates.py", "--rows", "3000", "--groups", "200"])
    near_duplicates.main()
    said = capfd.readouterr().out
    assert re.findall(r"^penstock .* recall 1.0000   precision 1.0000", said, re.MULTILINE)
    assert re.findall(r"^penstock / faiss alone: [\d.]+ of the time$", said, re.MULTILINE)
