"""What attention takes on a GPU beside what a run without data counts, which is that of the fused
kernel of a CPU."""

from collections.abc import Iterator

from flows.job.precision import PartSettings, no_bfloat16
from flows.planning.estimate import Term
from flows.planning.loads import Load
from stages.models.card import PartCard
from stages.models.footprint import at_size
from stages.process.device import device_capability


def attention_terms(
    half: PartCard, settings: PartSettings, load: Load, rows: int, units: int, device: str
) -> Iterator[Term]:
    """Of so many rows of so many units; nothing on a CPU."""
    if not device.startswith("cuda"):
        return
    if settings.dtype == "bfloat16" and no_bfloat16(device):
        scores = at_size(
            half.works, lambda w: w.scores_bytes, kind=load.kind, rows=rows, units=units
        )
        gpu = "compute capability {}.{}".format(*device_capability(device))
        why = f"scores of all pairs of tokens, in 32 bit: {gpu} has no fused attention in bf16"
        yield Term(part="workspace", bytes=scores, why=why)
    elif masks := at_size(
        half.works, lambda w: w.mask_bytes, kind=load.kind, rows=rows, units=units
    ):
        # A fused kernel takes no booleans, and rows of a multiple of 16 numbers.
        why = "masks of a batch, once as numbers and once with longer rows"
        yield Term(part="workspace", bytes=masks, why=why)
