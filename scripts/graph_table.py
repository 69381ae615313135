"""Makes the parts of docs/models.md on dual encoders, whose halves make what the whole makes, and
on ONNX graphs, which make what the towers of every family in halves make."""

import json
import multiprocessing
import resource
import signal
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

from artifacts.schema import Half
from benchmarks._common import cells

HEAD = """
## Graphs

This table lists what [`penstock export --to onnx`](graphs.md) can make. For each family, the vision
half of a tiny model is loaded. Its encoders are found by running it, and their graphs are made and
tried as an export does. An export tries two images, one and four. If an encoder takes all images as
one sequence, it also tries images of different sizes, whose windows have unequal lengths. Videos
are tried in the same way. Then come inputs that the export did not see: other images, three of
them, other sizes.

- *agrees*: features differ by less than 1/1000 of the largest number in 32 bit, most by less than
  1/100000.
- *refused*: the export, or a graph that gets such an input, ends with the reason. torch takes it.

No graph may differ silently.

**{agreeing} of {families} families agree, and {halves} of {both} halves of dual encoders.**

| family | encoders | graphs | image | video | batch of 4 | mixed | note |
|---|---|---|---|---|---|---|---|
"""
LEAST = 60
"""Families that must agree."""
SECONDS = 240
"""Processor time that one may take."""
NOTE = 240
"""Maximum length of a reason in letters."""
HALVES: dict[str, Half] = {"vision half": "vision", "text half": "language"}


def section() -> tuple[str, bool]:
    """The text of the part, and whether enough families agree and none is silently otherwise."""
    from tests.support.dual_encoders import names
    from tests.support.tiny_families import FAMILIES
    from tests.support.tiny_families.verdict import UNCUT

    judged("clip, vision half")  # loads all libraries once, so that no family's process has to
    families = sorted({variant.partition(":")[0] for variant in FAMILIES} - UNCUT, key=str.lower)
    duals = [f"{name}, {half}" for name in sorted(names()) for half in HALVES]
    of_families, of_duals = (list(map(judged_apart, each)) for each in (families, duals))
    agreeing, halves = (
        sum(r["result"] == "agrees" for r in rows) for rows in (of_families, of_duals)
    )
    head = HEAD.format(agreeing=agreeing, families=len(families), halves=halves, both=len(duals))
    rows = [*of_families, *of_duals]
    enough = agreeing >= LEAST and not any(row["result"].startswith("differs") for row in rows)
    return head + "".join(line(row) + "\n" for row in rows), enough


def judged_apart(name: str) -> dict[str, Any]:
    """What came of one family, or of a half of a dual encoder, in a process of its own: an exporter
    may never end. It begins where this one is, which has all libraries loaded and warm."""
    print(f"{name}…", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "row.json"
        child = multiprocessing.get_context("fork").Process(target=judge_into, args=(name, file))
        child.start()
        child.join()
        if file.exists():
            row: dict[str, Any] = json.loads(file.read_text())
            return row
    if child.exitcode != -signal.SIGXCPU:
        raise SystemExit(f"{name} could not be judged: exit status {child.exitcode}")
    return {"name": name, "result": f"refused: no graph within {SECONDS} s of processor time"}


def judge_into(name: str, file: Path) -> None:
    """Judge within the time, and write what came of it to a file."""
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
    file.write_text(json.dumps(judged(name)))


def judged(name: str) -> dict[str, Any]:
    """What came of a family, or of a half of a dual encoder, as a row."""
    from tests.support.graph_verdict import COLUMNS, judge_dual_graphs, judge_graphs

    dual, _, half = name.partition(", ")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        made = judge_dual_graphs(dual, HALVES[half], path) if half else judge_graphs(name, path)
    columns = {column: made.column(column) for column in COLUMNS}
    facts = {"towers": list(made.towers), "graphs": made.graphs, "apart": made.apart}
    return {"name": name, "result": made.result, **facts, **columns}


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    words_of_it, _, why = row["result"].partition(": ")
    why = textwrap.shorten(why, NOTE, placeholder=" …")
    columns = [row.get(column, "") for column in ("image", "video", "batch 4", "mixed")]
    if not any(columns):
        columns[0] = words_of_it
    towers = ", ".join(f"`{path}`" for path in row.get("towers", ()))
    texts = [row["name"], towers, row.get("graphs") or "", *columns, why]
    return cells(str(text).replace("|", "\\|") for text in texts)


DUAL_HEAD = """
## Dual encoders

[`penstock embed`](embed.md) takes models that turn an image and a text into comparable vectors.
They are the classes that transformers has for zero-shot image classification. A tiny model of each
is saved, its halves are loaded alone, and the vectors of images go through the form of the store.
The logits are those of the model's own `forward` over stored vectors. *exact*: bit-identical to the
whole model, in 32 bit, and in bf16 where that column says so.

**{exact} of {all} classes exact in 32 bit, {short} of them in bf16; {refused} refused.**

| type | class | images | texts | logits | in bf16 | vision half | text half | note |
|---|---|---|---|---|---|---|---|---|
"""
LEAST_DUAL = 10
"""Classes that must be exact."""


def dual_section() -> tuple[str, bool]:
    """The text of the part, and whether enough classes are exact."""
    import torch

    from tests.support.dual_encoders import judge, names

    def judged(name: str, dtype: torch.dtype) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            return judge(name, Path(folder), dtype)

    pairs = [(judged(n, torch.float32), judged(n, torch.bfloat16)) for n in sorted(names())]
    exact = sum(whole.exact for whole, _ in pairs)
    head = DUAL_HEAD.format(
        exact=exact,
        all=len(pairs),
        short=sum(short.exact for _, short in pairs),
        refused=sum(bool(whole.refused) for whole, _ in pairs),
    )
    return head + "".join(dual_line(*pair) + "\n" for pair in pairs), exact >= LEAST_DUAL


def dual_line(whole: Any, short: Any) -> str:
    """A row of the table."""
    name = [whole.name, whole.class_name]
    if whole.refused:
        return cells([*name, "refused", *[""] * 5, whole.refused])
    shares = [f"{100 * share:.0f} %" for share in whole.shares]
    notes = [f"in bf16 {of}: the whole model {text}" for of, text in short.results.items()
             if text.startswith("fails")]  # fmt: skip
    kinds = {text.partition(":")[0] for text in short.results.values()}
    each = ", ".join(f"{of} {text.partition(':')[0]}" for of, text in short.results.items())
    in_short = "exact" if kinds == {"exact"} else each
    return cells([*name, *whole.results.values(), in_short, *shares, "; ".join(notes)])
