"""Compares what other programs write with what Penstock reads of it, and writes the table of
docs/precision.md.

    python -m scripts.prove.foreign sources FOLDER/src
    ENVIRONMENT/bin/python scripts/prove/foreign_writer.py PROGRAM FOLDER/src FOLDER/out
    python -m scripts.prove.foreign table FOLDER/out

The second command is run for each program, in an environment of its own. The third ends with 1 if a
file that is read gives other tokens than its program, in 32 bit.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.builders.common import cells, heads, put

PAGE = Path(__file__).parents[2] / "docs" / "precision.md"
MARK = "files of other programs"
FAMILIES = ("qwen2_5_vl", "qwen3_vl", "llava", "gemma3")
SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 16}
"""Sizes that groups of 128 and blocks fit."""
PROMPT = "Describe it."


class Cell(NamedTuple):
    """What became of one file."""

    outcome: str
    """`read`, `refused`, `differs`, or empty if its program does not write it."""
    words: str = ""
    """How it is refused, or what differs."""


def write_sources(folder: Path) -> None:
    """Write a tiny checkpoint in 16 bit of each family, and the inputs of a picture."""
    from tests.support import checkpoints, families
    from tests.support.tiny_families import parts

    narrow: Any = parts.small

    def wide(**changes: Any) -> dict[str, Any]:
        own = {"out_hidden_size": SIZES["hidden_size"]} if "out_hidden_size" in changes else {}
        sizes: dict[str, Any] = narrow(**{**SIZES, **changes, **own})
        return sizes

    parts.small = wide
    for family in FAMILIES:
        if family in families.BUILDERS:
            families.BUILDERS[family](folder / family)
        else:
            shutil.copytree(checkpoints.whole_checkpoint(family), folder / family)
        write_inputs(folder / family)


def write_inputs(folder: Path) -> None:
    """Write the weights in 16 bit, and beside them what the processor makes of a picture."""
    import torch
    import transformers
    from PIL import Image
    from safetensors.torch import save_file

    from tests.support.media import picture

    hf: Any = transformers
    hf.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(
        folder
    )
    processor = hf.AutoProcessor.from_pretrained(folder)
    content = [{"type": "image"}, {"type": "text", "text": PROMPT}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    images = [Image.fromarray(picture(7, 64, 64))]
    inputs = processor(text=[text], images=images, return_tensors="pt")
    tensors = {name: tensor.contiguous() for name, tensor in inputs.items()}
    save_file(tensors, folder / "inputs.safetensors")


def judged(folder: Path, note: Mapping[str, Any]) -> Cell:
    """Compare the tokens of a file as Penstock reads it with those of its program."""
    import torch
    from safetensors.torch import load_file

    from artifacts.errors import PenstockError
    from scripts.prove.foreign_writer import tokens_of
    from stages.models import describe, load_half

    if note.get("failed"):
        return Cell("", str(note["failed"]))
    inputs, answers = load_file(folder / "inputs.safetensors"), []
    try:
        for packed in (False, True):
            half = load_half(folder, "whole", dtype=torch.float32, packed=packed)
            answers.append(tokens_of(half, inputs))
    except PenstockError:
        try:
            describe(folder)
        except PenstockError as error:
            return Cell("refused", error.message)
        return Cell("differs", "a plan takes it, and it is not loaded")
    if note["tokens"] is None:
        return Cell("differs", "it is read, and its program gave no tokens")
    differ = [tokens for tokens in answers if tokens != note["tokens"]]
    return Cell("differs", f"{differ[0]}, not {note['tokens']}") if differ else Cell("read")


def table(notes: Iterable[Mapping[str, Any]], outcomes: Mapping[tuple[str, ...], Cell]) -> str:
    """Return the table: a row for each form, a column for each family."""
    rows = list(dict.fromkeys((note["program"], note["form"]) for note in notes))
    versions = {note["program"]: note["versions"] for note in notes}
    lines = [heads(" | ".join(["written by", "form", *FAMILIES]))]
    for program, form in rows:
        of_row = [outcomes.get((program, form, family), Cell("")) for family in FAMILIES]
        if not any(cell.outcome for cell in of_row):
            continue
        own = [f"{name} {number}" for name, number in versions[program].items()]
        by = f"{program} ({', '.join(own)})" if form == first_form(rows, program) else program
        lines.append(cells([by, form, *(cell.outcome or "not written" for cell in of_row)]))
    return "\n".join(lines) + "\n"


def first_form(rows: Iterable[tuple[str, str]], program: str) -> str:
    return next(form for name, form in rows if name == program)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("step", choices=("sources", "table"))
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    if given.step == "sources":
        write_sources(given.folder)
        return 0
    notes, outcomes = [], dict[tuple[str, ...], Cell]()
    for path in sorted(given.folder.glob("*.json")):
        note = json.loads(path.read_text(encoding="utf-8"))
        notes.append(note)
        key = (note["program"], note["form"], note["family"])
        outcomes[key] = judged(path.with_suffix(""), note)
        print(*key, *outcomes[key], sep=" | ", flush=True)
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(put(page, MARK, table(notes, outcomes)), encoding="utf-8")
    return int(any(cell.outcome == "differs" for cell in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
