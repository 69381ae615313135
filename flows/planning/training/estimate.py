"""Estimates what fine-tuning a model takes of each GPU, from its architecture; trains nothing.

ms-swift's defaults are the assumptions: the vision tower and the connector are frozen, LoRA has
rank 8 and dropout and stands beside every linear layer of the language half.
"""

from collections.abc import Iterator

from artifacts.errors import UsageError
from artifacts.words import counted
from flows.console.units import gib
from flows.planning.architecture import Architecture
from flows.planning.layers import pass_bytes
from flows.planning.terms import GPU_WORKSPACE_BYTES, HELD_BACK
from flows.planning.towers import Tower
from flows.planning.training.activations import (
    HALF,
    LOGITS,
    layer_bytes,
    lora_layer_bytes,
    lora_parameters,
)
from flows.planning.training.terms import (
    ADAPTER,
    OPTIMIZERS,
    ZERO,
    TrainEstimate,
    Training,
    TrainTerm,
)
from stages.process.device_limit import CONTEXT_BYTES

RANK = 8
"""Rank of a LoRA."""
NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)
"""Bits of a number: itself, a scale of 8 bits a block of 64, and one of 32 bits for 256 of
those."""
BUCKETS = 2 * 200_000_000
"""Numbers that ZeRO 1 and 2 gather and reduce at a time, as ms-swift's configurations have it."""
LIVE = 1_000_000_000
"""Numbers of weights that ZeRO 3 has whole at once, at the most (stage3_max_live_parameters)."""
ANY_SIZE_PIXELS = 1280 * 28 * 28
"""Pixels of a picture for a tower that takes any size: as Qwen2.5-VL's model card advises."""
KORTHIKANTI = "Korthikanti et al. 2022, Reducing Activation Recomputation (arXiv:2205.05198)"
QLORA = "Dettmers et al. 2023, QLoRA (arXiv:2305.14314)"


def train_estimate(architecture: Architecture, training: Training) -> TrainEstimate:
    """Return what fine-tuning takes of each GPU. Raises UsageError for a model that writes no
    text."""
    text = architecture.text
    if text is None or not architecture.writes:
        raise UsageError(
            "there is no language half to fine-tune in this model",
            hint="Choose a model that writes text, or plan without --train",
        )
    full = training.method == "full"
    trained = architecture.text_parameters if full else lora_parameters(text, RANK)
    frozen = architecture.parameters - (trained if full else 0)
    terms = [
        *_states(architecture, text, training, trained, frozen),
        *_gathered(architecture, training, trained),
        *_computing(architecture, text, training),
    ]
    computed = sum(term.bytes for term in terms if term.moment == "backward")
    terms += [
        TrainTerm(
            part="workspace",
            bytes=GPU_WORKSPACE_BYTES + int(HELD_BACK * computed),
            why=f"scratch of cuBLAS, and {HELD_BACK:.0%} of what is computed with, held back",
        ),
        TrainTerm(part="context", bytes=CONTEXT_BYTES, why="the driver, and torch's kernels"),
    ]
    notes = tuple(_notes(architecture, training))
    return TrainEstimate(terms=tuple(terms), trained=trained, frozen=frozen, notes=notes)


def _states(
    architecture: Architecture, text: Tower, training: Training, trained: int, frozen: int
) -> Iterator[TrainTerm]:
    """Yield weights, gradients and what the optimizer keeps, after ZeRO has cut them."""
    full = training.method == "full"
    states = OPTIMIZERS[training.optimizer] if full else ADAPTER
    shards = {stage: training.gpus if training.zero >= stage else 1 for stage in (1, 2, 3)}

    def cut(stage: int) -> str:
        return f" / {shards[stage]} GPUs" if shards[stage] > 1 else ""

    if training.method == "qlora":
        packed = text.layers * text.linear_parameters
        yield TrainTerm(
            part="weights",
            bytes=int(packed * NF4_BITS / 8) // shards[3],
            why=f"{packed / 1e6:,.0f} M numbers x {NF4_BITS:.3f} bits in nf4{cut(3)}",
            source=QLORA,
        )
        frozen -= packed
    if frozen:
        yield TrainTerm(
            part="weights",
            bytes=HALF * frozen // shards[3],
            why=f"{frozen / 1e6:,.0f} M frozen numbers x {HALF} bytes{cut(3)}",
        )
    count = f"{trained / 1e6:,.1f} M trained numbers"
    for part, each, stage, what in (
        ("weights", states.weight, 3, ""),
        ("gradients", states.gradient, 2, ""),
        ("optimizer", states.optimizer, 1, f": {states.keeps}"),
    ):
        yield TrainTerm(
            part=part,
            bytes=int(trained * each) // shards[stage],
            why=f"{count} x {each:g} bytes{cut(stage)}{what}",
            source=states.source,
        )
    if states.step:
        yield TrainTerm(
            part="step",
            bytes=trained * states.step // shards[1],
            why=f"{count} x {states.step} bytes: roots of moments, made of all at once "
            "by a step that is not fused",
            source=states.source,
            moment="step",
        )


def _gathered(architecture: Architecture, training: Training, trained: int) -> Iterator[TrainTerm]:
    if training.gpus < 2 or not training.zero:
        return
    if training.zero == 3:
        whole = min(LIVE, architecture.parameters)
        why = f"weights that are whole at a time, {whole / 1e6:,.0f} M x {HALF} bytes"
    else:
        whole = min(BUCKETS, 2 * trained)
        why = f"what is gathered and reduced at a time, {whole / 1e6:,.0f} M x {HALF} bytes"
    yield TrainTerm(part="gathered", bytes=HALF * whole, why=why, source=ZERO)


def _computing(architecture: Architecture, text: Tower, training: Training) -> Iterator[TrainTerm]:
    rows = training.batch * training.length
    told = f"{training.batch} x {training.length:,} tokens"
    if training.method == "full":
        kept = layer_bytes(text, training.length)
    else:
        kept = lora_layer_bytes(text, training.length, RANK)
    logits = sum(LOGITS) * architecture.vocabulary * rows
    # Gradients that live at once inside one layer: as much as its own numbers do.
    inside = pass_bytes(text, 1, rows, HALF)
    if training.checkpointing:
        bytes_kept = HALF * text.width * text.layers * rows
        why = f"{told} x {text.layers} layers x {HALF * text.width:,} bytes, their inputs"
        again = rows * kept + inside
    else:
        bytes_kept = kept * text.layers * rows
        why = f"{told} x {text.layers} layers x {kept:,} bytes"
        again = inside
    yield TrainTerm(
        part="activations", bytes=bytes_kept, why=why, source=KORTHIKANTI, moment="backward"
    )
    copies = " + ".join(map(str, LOGITS))
    if logits >= again:
        why = f"{told} x {architecture.vocabulary:,} words x ({copies}) bytes, with their gradients"
        yield TrainTerm(part="logits", bytes=logits, why=why, moment="backward")
    else:
        what = "one layer computed again, with" if training.checkpointing else "inside one layer:"
        why = f"{what} its gradients ({gib(logits)} of logits are gone by then)"
        yield TrainTerm(part="layer", bytes=again, why=why, source=KORTHIKANTI, moment="backward")
    if training.method == "qlora":
        largest = max(rows * columns for rows, columns in text.matrices)
        why = f"the largest matrix unpacked: {largest / 1e6:,.0f} M x {HALF} bytes"
        yield TrainTerm(part="unpacked", bytes=HALF * largest, why=why, moment="backward")
    if architecture.vision is not None:
        yield _looking(architecture.vision, training)


def _looking(vision: Tower, training: Training) -> TrainTerm:
    """Return what the frozen tower takes. It computes without gradients, before the language half
    begins."""
    pictures = training.batch * training.frames
    tokens = vision.positions or max(1, picture_pixels(vision) // vision.patch**2)
    return TrainTerm(
        part="vision",
        bytes=pass_bytes(vision, pictures, tokens, HALF),
        why=f"{counted(pictures, 'picture')} x {tokens:,} tokens through the frozen tower",
        moment="vision",
    )


def picture_pixels(vision: Tower) -> int:
    """Return the pixels of a picture as it is assumed to be seen."""
    return vision.image_size**2 or ANY_SIZE_PIXELS


def _notes(architecture: Architecture, training: Training) -> Iterator[str]:
    if training.zero and training.gpus < 2:
        yield f"ZeRO {training.zero} cuts among GPUs, and there is one: it saves nothing"
    if training.gpus > 1 and not training.zero:
        yield f"each of {training.gpus} GPUs holds all of it: --zero cuts it among them"
    if training.zero == 3 and training.method == "qlora":
        yield "DeepSpeed's ZeRO 3 does not take weights in nf4; FSDP does"
    if training.method == "full" and training.optimizer != "mixed":
        yield "without a master copy in 32 bit, weights in 16 bit lose the smallest steps"
    if architecture.text is not None and architecture.text.mixed:
        yield "a mixture of experts: what its experts keep for the backward pass is not counted"
    vision = architecture.vision
    if vision is not None and training.frames:
        edge = int(picture_pixels(vision) ** 0.5)
        places = training.frames * vision.handed_over(edge)
        if places > training.length:
            yield (
                f"{places:,} places in {counted(training.frames, 'picture')}, more than the "
                f"{training.length:,} tokens of a sample: give --max-length or fewer --frames"
            )
