"""Writes a tokenizer that is published as vocabulary and merges, or as a SentencePiece model, as
one `tokenizer.json`, which is read without transformers."""

from pathlib import Path
from typing import Any

from artifacts.errors import EnvironmentFault
from stages.models.half_job import TokenizerJob
from stages.process.events import EventReporter
from stages.process.job import JobFields, parse_job

CLIP_MARK = "<|startoftext|>"
"""Mark of CLIP's tokenizer, whose folder seldom names its class."""
CONFIG = "tokenizer_config.json"


def run(job_fields: JobFields, report: EventReporter) -> None:
    """Write the tokenizer of a folder. Raises EnvironmentFault."""
    from transformers import AutoTokenizer, CLIPTokenizer

    job = parse_job(TokenizerJob, job_fields)
    stated = Path(job.folder, CONFIG)
    is_clip = stated.is_file() and CLIP_MARK in stated.read_text("utf-8", errors="replace")
    try:
        kind: Any = CLIPTokenizer if is_clip else AutoTokenizer
        tokenizer = kind.from_pretrained(job.folder, local_files_only=True)
        tokenizer.backend_tokenizer.save(job.file)
    except Exception as error:  # the library raises many kinds for files that are cut or edited
        raise EnvironmentFault(
            f"the tokenizer in {job.folder} cannot be read ({type(error).__name__}): its files are "
            "cut, or of a kind that transformers does not know",
            hint="Delete that folder and get it again, or name another one with --tokenizers",
        ) from error
    report.note(ready=True)
