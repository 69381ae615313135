"""Headings of `--help`, which option declarations refer to."""

from stages.decode.generation import TEXT

__all__ = ["FILES", "LABELS", "MEMORY", "MODEL", "OUTPUTS", "SAMPLING", "TEXT", "VECTORS"]

MODEL = "model and store"
SAMPLING = "sampling"
VECTORS = "store and sampling"
MEMORY = "memory"
FILES = "files"
LABELS = "labels"
OUTPUTS = "outputs"
