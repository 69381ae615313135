"""Finds what a round needs, and checks it before a round begins."""

from pathlib import Path

from artifacts.paths import folder_named
from flows.options.commands import CaptionConfig


def previous_adapter(config: CaptionConfig, out: Path) -> str:
    """Return the adapter of a run's captions; empty: none. One in the run's folder is returned
    relative to it, because the folder may have been moved or copied. Raises UsageError."""
    if not config.adapter:
        return ""
    adapter = folder_named(config.adapter, "adapter")
    for folder in (out, folder_named(config.out, "out")):
        if adapter.is_relative_to(folder):
            return str(adapter.relative_to(folder))
    return str(adapter)
