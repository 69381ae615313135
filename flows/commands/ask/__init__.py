"""Everything of `penstock ask` but its stage."""

from flows.core.commands import Declaration
from flows.core.pipelines import REBUILD, Pipeline
from stages import answer

ANSWER: Pipeline = (*REBUILD, answer.STAGE)
"""Features of files, and how probable the labels of questions are about them."""
DECLARATION = Declaration(
    planned={"ask": (ANSWER,)}, pipelines=(ANSWER,), costs="flows.commands.ask.costs:COSTS"
)
