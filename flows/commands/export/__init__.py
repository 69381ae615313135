"""Everything of `penstock export` but its stages."""

from flows.core.commands import Declaration
from flows.core.pipelines import CAPTION, EMBED, REBUILD, Pipeline
from stages import export

EXPORT: Pipeline = (*CAPTION, export.CALIBRATE, export.STAGE, export.JUDGE)
"""Captions of files, a quantized checkpoint, and the original's logits on those captions."""
EXPORT_GRAPHS: Pipeline = (*CAPTION, export.TRACE, export.JUDGE)
"""Captions of files, a checkpoint with graphs, and the original's logits on those captions."""
EXPORTED: Pipeline = (*REBUILD, export.COMPARE, export.JUDGE)
"""Features of the same files by the new checkpoint, and its distance from the original."""
EXPORT_VECTORS: Pipeline = (*EMBED, export.STAGE)
"""Vectors of files, and a quantized checkpoint."""
EXPORT_GRAPHS_VECTORS: Pipeline = (*EMBED, export.TRACE)
"""Vectors of files, and a checkpoint with graphs."""
EXPORTED_VECTORS: Pipeline = (*EMBED, export.COMPARE)
"""Vectors of the same files by the new checkpoint, and its distance from the original."""
EXPORTS = (EXPORT, EXPORT_VECTORS)
"""Pipelines that write quantized checkpoints, one per sort of model."""
GRAPHS = (EXPORT_GRAPHS, EXPORT_GRAPHS_VECTORS)
"""Pipelines that write checkpoints with graphs, one per sort of model."""
DECLARATION = Declaration(
    pipelines=(*EXPORTS, *GRAPHS, EXPORTED, EXPORTED_VECTORS),
    planned={"export": EXPORTS},
    costs="flows.commands.export.costs:COSTS",
    finds="flows.commands.export.result:export_in",
)
