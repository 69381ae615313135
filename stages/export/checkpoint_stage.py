"""Runs the stage that writes checkpoints: quantized ones, or ones with a GGUF file."""

from importlib import import_module
from typing import Any

from stages.export.jobs import GGUF
from stages.process.report import EventReporter


def _writer(fields: dict[str, Any]) -> Any:
    """Return the module that writes this kind."""
    name = "gguf" if fields["kind"] in GGUF else "write"
    return import_module(f"stages.export.{name}")


def warm(fields: dict[str, Any]) -> None:
    """Import what the writer needs before memory is counted."""
    _writer(fields).warm(fields)


def run(fields: dict[str, Any], report: EventReporter) -> None:
    """Write the checkpoint of an ExportJob. Raises PenstockError."""
    _writer(fields).run(fields, report)
