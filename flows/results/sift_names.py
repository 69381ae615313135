"""The names of the files that a sift run writes. Every command reads these names to recognize
Penstock's own files, so this module does not import numpy."""

from collections.abc import Iterable

from artifacts.tables import TABLES

MARKS_FILE, CHUNKS_FILE = "marks.jsonl", "chunk_marks.jsonl"
KEPT_FILE, LEFT_OUT_FILE = "kept.jsonl", "left_out.jsonl"


def output_names(formats: Iterable[str]) -> list[str]:
    """Return the names of the files that a run writes."""
    forms = ["jsonl", *(form for form in TABLES if form in formats)]
    files = (MARKS_FILE, CHUNKS_FILE, KEPT_FILE, LEFT_OUT_FILE)
    return [file.replace("jsonl", form) for file in files for form in forms]
