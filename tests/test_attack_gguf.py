"""GGUF files that mean harm or are damaged: each ends in one line, within memory and time, or is
loaded because what was changed is not used. Needs `make gguf`.

Each of the damaged files goes through what a run does with it, in a process of its own: the stage
that compares it with the checkpoint, and if that takes it, the loading of the decode stage, a
prompt and a step. llama.cpp must never see one that would end its process.
"""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from penstock_demo.clips import write_clips
from stages.models.gguf import FILE
from stages.models.gguf.header import GgufHeader, read_header
from stages.process.job import job_fields
from tests.support.attacks import ROOT, attacked
from tests.support.gguf_bytes import mutations

pytestmark = [pytest.mark.slow, pytest.mark.gguf]
MUTATIONS = 200
REFUSED, TAKEN = 2, 0
USED = {"general.architecture", "general.alignment", "split.count", "tokenizer.ggml.tokens"}
"""Metadata that decides what is loaded, beside that of the architecture."""
ARCHITECTURE, UNREAD = "qwen2vl.", {"qwen2vl.context_length"}
CLOSE = 1e-6
"""Relative difference of numbers that count as the same."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A valid file as others publish it, with the demo's language half."""
    from penstock_demo import CHECKPOINT
    from stages.export.jobs import ExportJob
    from stages.export.run import run
    from tests.support.published_gguf import published, tokens_of
    from tests.support.waves import events

    folder = tmp_path_factory.mktemp("whole")
    job = ExportJob(
        model=str(CHECKPOINT), recipe={}, folder=str(folder / "export"), kind="gguf-q4_0",
        parts=("language",),
    )  # fmt: skip
    with events() as (report, _):
        run(job_fields(job), report)
    own = folder / "export" / FILE
    return published(own, folder / "published.gguf", tokens=tokens_of(CHECKPOINT, own))


def ended(files: list[Path]) -> list[dict[str, Any]]:
    """How processes end that use these files."""
    from penstock_demo import CHECKPOINT

    paths = map(str, [CHECKPOINT, *files])
    command = [sys.executable, "-m", "tests.support.gguf_users", *paths]
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    env = {**os.environ, **one, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, check=True)
    found: list[dict[str, Any]] = json.loads(run.stdout)
    return found


def differences(first: GgufHeader, second: GgufHeader) -> set[str]:
    """The keys of metadata that differ, and the names of tensors that lie elsewhere."""
    found = {
        key
        for key in first.values.keys() | second.values.keys()
        if not same(first.values.get(key), second.values.get(key))
    }
    both = first.tensors.keys() | second.tensors.keys()
    return found | {n for n in both if first.tensors.get(n) != second.tensors.get(n)}


def decides(key: str) -> bool:
    """Whether a key of metadata, or a tensor, changes what is computed."""
    if key.endswith((".weight", ".bias")) or key in USED:
        return True
    return key.startswith(ARCHITECTURE) and key not in UNREAD


def same(first: Any, second: Any) -> bool:
    if isinstance(first, float) and isinstance(second, float):
        return abs(first - second) <= CLOSE * abs(first)
    return type(first) is type(second) and bool(first == second)


def test_damaged_files_are_one_line_each(whole: Path, tmp_path: Path) -> None:
    """Exit code 0 is right only if no tensor moved and all metadata that decides is as it was:
    what differs is a name, a description, a template, or padding. All else must be refused."""
    content, original = whole.read_bytes(), read_header(whole)
    ways = mutations(content, original.data_start, original.tensors)
    files: dict[Path, str] = {}
    for seed in range(MUTATIONS):
        way = list(ways)[seed % len(ways)]
        if (damaged := ways[way](random.Random(seed))) != content:
            file = tmp_path / f"{seed}.gguf"
            file.write_bytes(damaged)
            files[file] = way
    valid, *found = ended([whole, *files])
    assert valid["code"] == TAKEN, valid
    counts: Counter[str] = Counter()
    for (file, way), end in zip(files.items(), found, strict=True):
        said = end["said"]
        assert end["code"] in (REFUSED, TAKEN), (file, way, end)
        if end["code"] == TAKEN:
            changed = differences(original, read_header(file))
            assert not any(map(decides, changed)), (file, way, changed)
            counts["taken: " + ("unused metadata" if changed else "padding")] += 1
        else:
            assert "\n" not in said and str(file) in said and len(said) < 600, (file, said)
            counts["refused: " + ("damaged" if "is damaged" in said else "does not fit")] += 1
    longest = max(end["s"] for end in found)
    sys.stderr.write(f"{dict(counts)}, longest {longest:.1f} s\n")
    assert sum(n for name, n in counts.items() if name.startswith("refused")) > MUTATIONS // 2


@pytest.mark.parametrize("way", ["cut within the header", "a negative offset", "zeros"])
def test_the_command_says_it_in_one_line(whole: Path, tmp_path: Path, way: str) -> None:
    content = whole.read_bytes()
    ways = mutations(content, 2000, ["output_norm.weight"])  # before the tokens
    file = tmp_path / "damaged.gguf"
    file.write_bytes(ways[way](random.Random(way)))
    write_clips(tmp_path / "clips", 1, seed=1)
    run = attacked(
        "caption", tmp_path / "clips", "--model", "demo", "--language-gguf", file,
        "--store", tmp_path / "store", "--out", tmp_path / "out",
    )  # fmt: skip
    run.holds(2)
    assert run.err.splitlines()[-1].startswith(f"penstock: {file} "), run.err
