"""Estimates the memory per GPU for fine-tuning a model, from its architecture. Trains nothing.

The assumptions are ms-swift's defaults. The vision encoder and the connector are frozen. LoRA has
rank 8 and dropout, and is applied to every linear layer of the language half.
"""

from collections.abc import Iterator
from dataclasses import replace

from artifacts.errors import UsageError
from artifacts.words import counted
from flows.console.units import gib
from flows.planning.architecture import Architecture
from flows.planning.layers import pass_bytes
from flows.planning.terms import GPU_WORKSPACE_BYTES, HELD_BACK
from flows.planning.towers import Tower
from flows.planning.training.terms import (
    ADAPTER,
    OPTIMIZERS,
    ZERO,
    Method,
    TrainEstimate,
    Training,
    TrainTerm,
)
from stages.process.device_limit import CONTEXT_BYTES

HALF = 2
"""Bytes of a number in 16 bit."""
ADAPTED = 4
"""Bytes of a number of an adapter that is trained in 32 bit."""
LORA_DROPOUT = 3
"""Bytes of a number that dropout before a LoRA matrix keeps: a copy and a mask."""
LOGITS = (4, 4, 4)
"""Bytes of a logit when the backward pass begins, all in 32 bit: its log-probability, the gradient
of that, and its own."""


def norm_bytes(tower: Tower, *, trained: bool = True) -> int:
    """Return the bytes that both norms keep of one token. LayerNorm keeps its input; RMSNorm as
    transformers write it keeps that in 32 bit, and what it multiplies with weights that are
    trained."""
    sums = 8  # in 32 bit, what was divided by; LayerNorm keeps two, in 16
    if tower.shifts:
        return 2 * HALF * tower.width + sums
    return 2 * (4 + (HALF if trained else 0)) * tower.width + sums


def scores_bytes(tower: Tower, tokens: int, *, fused: bool, each: int = HALF) -> int:
    """Return the bytes of one token's scores. FlashAttention (Dao et al. 2022) keeps a sum a head,
    in 32 bit; without it the softmax is kept in 32 bit and, if that is another, in `each` bytes a
    number, and grouped keys and values repeated for every head."""
    if fused:
        return 4 * tower.heads
    repeated = 2 * each * (tower.attention.query_width - tower.attention.key_width)
    return tower.heads * tokens * (4 + (each if each < 4 else 0)) + repeated


def layer_bytes(tower: Tower, tokens: int, *, fused: bool = True) -> int:
    """Return the bytes that one layer keeps of one token among so many."""
    width, query, key = tower.width, tower.attention.query_width, tower.attention.key_width
    into_mlp = 4 if tower.mlp.gated else 2
    attention = width + query + 2 * key + query
    return (
        norm_bytes(tower)
        + HALF * (attention + width + into_mlp * tower.mlp.width)
        + scores_bytes(tower, tokens, fused=fused)
    )


def lora_layer_bytes(tower: Tower, tokens: int, rank: int, *, fused: bool = True) -> int:
    """Return the same where each matrix is frozen and has a LoRA beside it. Its input is kept after
    dropout, a copy for each, and the product with the first of its two matrices."""
    inputs = sum(columns for _, columns in tower.matrices)
    # What only a trained matrix, or a trained norm, needs.
    spared = 2 * tower.width + tower.mlp.width
    return (
        layer_bytes(tower, tokens, fused=fused)
        - (norm_bytes(tower) - norm_bytes(tower, trained=False))
        - HALF * spared
        + LORA_DROPOUT * inputs
        + HALF * rank * len(tower.matrices)
    )


def adapted_layer_bytes(
    tower: Tower, tokens: int, rank: int, each: int, *, fused: bool = True
) -> int:
    """Return the same of a frozen layer whose adapters are in 32 bit and have no dropout; `each`
    are the bytes of a number of the layer. In 16 bit each matrix keeps its input in 32."""
    query, key, width = tower.attention.query_width, tower.attention.key_width, tower.width
    inside = tower.mlp.width
    norms = norm_bytes(tower, trained=False) + (2 * (each - HALF) * width if tower.shifts else 0)
    scores = scores_bytes(tower, tokens, fused=fused, each=each)
    # The nonlinearity keeps what it is given; a gate, both sides of the product.
    seen = query if fused or each == ADAPTED else 0  # what comes out of attention
    made = query + seen + 2 * key + (3 if tower.mlp.gated else 1) * inside
    inputs = (
        2 * width + inside if each == ADAPTED else sum(columns for _, columns in tower.matrices)
    )
    return norms + scores + each * made + ADAPTED * (inputs + rank * len(tower.matrices))


def lora_parameters(tower: Tower, rank: int) -> int:
    """Count a LoRA of that rank beside each matrix of each layer (Hu et al. 2021)."""
    return tower.layers * rank * sum(rows + columns for rows, columns in tower.matrices)


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


LEAST_LENGTH = 256
"""Least tokens of a sample that is still worth training on."""
MOST_GPUS = 64
NAMED = 3
LIGHTER: dict[Method, tuple[Method, ...]] = {
    "full": ("lora", "qlora"),
    "lora": ("qlora",),
    "qlora": (),
}


def changes(
    architecture: Architecture, training: Training, limit: int
) -> list[tuple[str, TrainEstimate]]:
    """Return options, gentlest first, with what is then taken; the first of each kind that fits."""
    found: list[tuple[str, TrainEstimate]] = []
    kinds = set()
    for kind, options, other in _tried(training):
        if kind not in kinds:
            takes = train_estimate(architecture, other)
            if takes.peak_bytes <= limit:
                kinds.add(kind)
                found.append((options, takes))
    return found[:NAMED]


def _tried(training: Training) -> Iterator[tuple[str, str, Training]]:
    """Yield kind, options, and what they mean. Layers are computed again in all but the first."""
    again = "" if training.checkpointing else " --checkpointing"
    least = replace(training, checkpointing=True)
    if again:
        yield "again", again.strip(), least
    if training.batch > 1:
        yield "batch", f"--batch-size 1{again}", replace(least, batch=1)
    gpus = 2
    while gpus <= MOST_GPUS and training.method != "qlora":
        if gpus > training.gpus or training.zero < 3:
            more = replace(least, zero=3, gpus=max(gpus, training.gpus))
            yield "gpus", f"--zero 3 --gpus {more.gpus}{again}", more
        gpus *= 2
    for method in LIGHTER[training.method]:
        other = replace(least, method=method, optimizer="mixed")
        yield "method", f"--train {method}{again}", other
    length = training.length // 2
    while length >= LEAST_LENGTH:
        yield "length", f"--max-length {length}{again}", replace(least, length=length)
        length //= 2
