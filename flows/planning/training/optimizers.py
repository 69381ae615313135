"""What training keeps of each parameter, by optimizer; knows no model."""

from dataclasses import dataclass

ZERO = "Rajbhandari et al. 2020, ZeRO (arXiv:1910.02054)"
LORA = "Hu et al. 2021, LoRA (arXiv:2106.09685)"
EIGHT_BIT = "Dettmers et al. 2021, 8-bit Optimizers (arXiv:2110.02861)"


@dataclass(frozen=True, kw_only=True, slots=True)
class States:
    """Bytes of a trained parameter."""

    weight: int
    gradient: int
    optimizer: float
    keeps: str
    """What the optimizer keeps."""
    step: int = 0
    """Beside, while it makes a step."""
    source: str = ZERO


OPTIMIZERS = {
    "mixed": States(
        weight=2,
        gradient=2,
        optimizer=12,
        keeps="a master copy and AdamW's two moments in 32 bit",
    ),
    "bf16": States(
        weight=2,
        gradient=2,
        optimizer=4,
        keeps="AdamW's two moments in 16 bit, no master copy",
        step=2,
        source="torch.optim.AdamW, whose moments are like the weights it is given",
    ),
    "8bit": States(
        weight=2,
        gradient=2,
        optimizer=2 + 2 * 4 / 256,
        keeps="AdamW's two moments in 8 bit, a scale of 32 bits for 256 of each, no master copy",
        source=EIGHT_BIT,
    ),
}
ADAPTER = States(
    weight=4, gradient=4, optimizer=8, keeps="AdamW's two moments in 32 bit", source=LORA
)
