"""The benchmarks of decoding compare the same captions on both sides, and see what memory holds."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import staged_vs_joint
from benchmarks._models import TINY, build, half_bytes, publish_clips
from benchmarks._modes import Outcome, perform
from benchmarks.staged_vs_joint import Bench, batches_of
from penstock_demo import CHECKPOINT

TOKENS = 3


def here(mode: str, job: dict[str, Any], budget: int | None = None) -> Outcome:
    """A mode in this process, where all is imported already."""
    return perform(mode, {**job, "dtype": "float32"})


def bench_of(model: Path, store: str, tokens: int) -> Bench:
    members = publish_clips(store, [8, 4, 8, 8])
    sizes: dict[str, Any] = {"tokens": tokens, "batches": (1, 2)}
    return Bench(model=model, store=store, members=members, runner=here, **sizes)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("bench")
    return bench_of(build(folder / "model", TINY, TOKENS), str(folder / "store"), TOKENS)


@pytest.mark.slow
def test_both_sides_make_the_same_captions(tmp_path: Path) -> None:
    bench = bench_of(CHECKPOINT, str(tmp_path), 24)
    cut = batches_of(bench.members, 2)
    bench.run("encode", cut)
    staged, joint = bench.run("decode", cut), bench.run("joint", cut)
    assert staged.texts == joint.texts
    assert len(set(joint.texts)) > 1
    assert len(staged.marks) == len(joint.marks) == 4


@pytest.mark.slow
def test_a_table_has_a_line_for_each_budget_and_says_what_does_not_fit(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = staged_vs_joint.compare(bench, max(half_bytes(bench.model).values()), repeat=1)
    table = staged_vs_joint.table(bench, lines)
    assert len(table) == 2 + 2 + 5
    assert "equal batch 1" in table[2]
    assert table[2] in capsys.readouterr().out
