"""Turns the captions of a video's chunks into chapters and a summary. Loads only the language
half."""

from stages.process.job import StageSpec
from stages.summarize.job import SummaryJob

OUTPUT_VERSION = 1
"""Increased when this stage's output changes for the same inputs; part of every later cache key."""
STAGE = StageSpec(
    name="summarize",
    writes="summaries",
    part="language",
    job=SummaryJob,
    of_media=False,
    uses_token_limit=True,
    output_version=OUTPUT_VERSION,
    entry="stages.summarize.run:run",
    verb="summarizing",
    counts="summary",
)
