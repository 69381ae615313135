"""Says what may become of a file that people wrote or edited; touches none."""

from collections.abc import Sequence

from artifacts.errors import UsageError

KEEP, REPLACE, APPEND, PREPEND = RULES = ("keep", "replace", "append", "prepend")
"""The values of `--existing`."""
JOINED = (APPEND, PREPEND)
"""Rules by which the caption is put into a text of a person's."""
JOINABLE = ("txt",)
"""Formats in which two texts make one."""


def check_existing(rule: str | None, overwrite: bool, formats: Sequence[str]) -> None:
    """Raise UsageError for a rule that is not known, or not for these formats."""
    if rule not in (None, *RULES):
        raise UsageError(f"--existing {rule} is not known", hint=f"Choose from {', '.join(RULES)}")
    if overwrite and rule not in (None, REPLACE):
        raise UsageError(
            f"--overwrite and --existing {rule} exclude each other", hint="Leave one of them out"
        )
    cues = [form for form in ("vtt", "srt") if form in formats]
    if rule in JOINED and cues:
        raise UsageError(
            f"--existing {rule} is for {', '.join(JOINABLE)}, not for {', '.join(cues)}",
            hint="Write those in a run of their own, with keep or replace",
        )
