"""Names of the output formats, and of the ways to treat files that users wrote or edited."""

from collections.abc import Sequence

from artifacts.errors import UsageError

TRAINER_FORMATS = ("kohya", "musubi", "diffusion-pipe", "ltx", "hf")
"""Formats that are the data sets of trainers."""
FORMATS = ("jsonl", "txt", "csv", "vtt", "srt", "parquet", "webdataset", *TRAINER_FORMATS)
"""The values of `--format`; jsonl is always written."""
COCO = "coco"
"""A format of labels alone."""
COCO_FILE = "labels.coco.json"
BESIDE = ("txt", "vtt", "srt")
"""Formats that make one file a medium, which `--beside` puts next to it."""
KEEP, REPLACE, APPEND, PREPEND = RULES = ("keep", "replace", "append", "prepend")
"""The values of `--existing`."""
JOINED = (APPEND, PREPEND)
"""Rules by which the caption is put into a text of a person's."""
JOINABLE = ("txt",)
"""Formats in which two texts make one."""


def check_formats(formats: Sequence[str], *, beside: bool) -> None:
    """Raise UsageError for a format that is not known, or for none that goes beside the media."""
    if unknown := sorted(set(formats) - {*FORMATS, COCO}):
        raise UsageError(
            f"--format {','.join(unknown)} is not known", hint=f"Choose from {', '.join(FORMATS)}"
        )
    if beside and not set(formats) & set(BESIDE):
        raise UsageError(
            "--beside is given, and no format that goes beside the media",
            hint=f"Add --format {','.join(BESIDE)}, or one of them",
        )


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
