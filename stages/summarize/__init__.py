"""Turns the captions of a video's chunks into chapters and a summary. Loads only the language
half."""

from stages.process.stage import StageSpec
from stages.summarize.job import SummaryJob

OUTPUT_VERSION = 1
"""Raised when this stage's own output changes for the same inputs; part of every key below it."""
STAGE = StageSpec(
    name="summarize",
    reads="",
    writes="summaries",
    part="language",
    job=SummaryJob,
    of_media=False,
    uses_token_limit=True,
    output_version=OUTPUT_VERSION,
    entry="stages.summarize.run:run",
    verb="summarizing",
)
