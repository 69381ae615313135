"""Everything of `penstock tune` but its stage."""

from flows.core.commands import Declaration
from flows.core.pipelines import REBUILD, Pipeline
from stages import tune

TUNE: Pipeline = (*REBUILD, tune.STAGE)
"""Features of files, and an adapter trained on them."""
DECLARATION = Declaration(
    pipelines=(TUNE,),
    costs="flows.commands.tune.costs:COSTS",
    finds="flows.commands.tune.result:training_in",
)
