"""Everything of `penstock ask` but its stage."""

from flows.core.commands import Declaration
from flows.core.options.model import is_served
from flows.core.pipelines import REBUILD, Pipeline
from stages import answer, ask, frames

ANSWER: Pipeline = (*REBUILD, answer.STAGE)
"""Features of files, and how probable the labels of questions are about them."""
PROBE: Pipeline = (frames.STAGE, ask.PROBE)
"""The same by a model that a server runs."""
DECLARATION = Declaration(
    planned={"ask": (ANSWER, PROBE)},
    pipelines=(ANSWER, PROBE),
    costs="flows.commands.ask.costs:COSTS",
)


def pipeline_of(model: str) -> Pipeline:
    """Return the pipeline that answers questions with a model of that name."""
    return PROBE if is_served(model) else ANSWER
