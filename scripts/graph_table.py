"""Makes the part of docs/models.md on ONNX graphs: of every family that runs in halves, whether
graphs make what its towers make. `make models` runs it last; alone, it writes its own part anew.
"""

import argparse
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

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "models.md"
TITLE = "\n## Graphs\n"
HEAD = (
    TITLE
    + """
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
)
LEAST = 60
"""Families that must agree."""
SECONDS = 240
"""Processor time that one may take."""
NOTE = 240
"""Maximum length of a reason in letters."""
HALVES: dict[str, Half] = {"vision half": "vision", "text half": "language"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="only these families, printed and not written")
    given = parser.parse_args()
    if given.names:
        warm()
        print("".join(line(row) + "\n" for row in map(judged_apart, given.names)), end="")
        return 0
    text, enough = section()
    PAGE.write_text(PAGE.read_text().partition(TITLE)[0] + text)
    print(f"{PAGE}: {text.partition('**')[2].partition('**')[0]}")
    return 0 if enough else 1


def warm() -> None:
    """Load and use all libraries once, so that no family's process has to."""
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    judged("clip, vision half")


def section() -> tuple[str, bool]:
    """The text of the part, and whether enough families agree and none is silently otherwise."""
    from tests.support.dual_encoders import names
    from tests.support.tiny_families import FAMILIES
    from tests.support.tiny_families.verdict import UNCUT

    warm()
    families = sorted({variant.partition(":")[0] for variant in FAMILIES} - UNCUT, key=str.lower)
    duals = [f"{name}, {half}" for name in sorted(names()) for half in HALVES]
    return told([judged_apart(name) for name in families], [judged_apart(name) for name in duals])


def told(families: list[dict[str, Any]], duals: list[dict[str, Any]]) -> tuple[str, bool]:
    """The same of these rows."""
    agreeing = sum(row["result"] == "agrees" for row in families)
    head = HEAD.format(
        agreeing=agreeing,
        families=len(families),
        halves=sum(row["result"] == "agrees" for row in duals),
        both=len(duals),
    )
    otherwise = [row for row in (*families, *duals) if row["result"].startswith("differs")]
    text = head + "".join(line(row) + "\n" for row in (*families, *duals))
    return text, agreeing >= LEAST and not otherwise


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
    said, _, why = row["result"].partition(": ")
    why = textwrap.shorten(why, NOTE, placeholder=" …")
    columns = [row.get(column, "") for column in ("image", "video", "batch 4", "mixed")]
    if not any(columns):
        columns[0] = said
    towers = ", ".join(f"`{path}`" for path in row.get("towers", ()))
    texts = [row["name"], towers, row.get("graphs") or "", *columns, why]
    return cells(str(text).replace("|", "\\|") for text in texts)


if __name__ == "__main__":
    sys.exit(main())
