"""Estimates the memory per GPU for fine-tuning a model, from its architecture. Trains nothing.

The assumptions are ms-swift's defaults. The vision encoder and the connector are frozen. LoRA has
rank 8 and dropout, and is applied to every linear layer of the language half.
"""

from collections.abc import Iterator
from dataclasses import replace

from artifacts.errors import UsageError
from artifacts.wording import counted
from flows.commands.plan.training.architecture import Architecture, Transformer, pass_bytes
from flows.commands.plan.training.terms import (
    ADAPTER,
    OPTIMIZERS,
    ZERO,
    Method,
    TrainEstimate,
    Training,
    TrainTerm,
)
from flows.core.console.lines import gib
from flows.core.plan.terms import FRAGMENTATION, GPU_WORKSPACE_BYTES
from stages.process.device_limit import CONTEXT_BYTES

HALF = 2
"""Bytes per 16-bit number."""
ADAPTED = 4
"""Bytes per adapter number, trained in 32 bit."""
LORA_DROPOUT = 3
"""Bytes per number kept by the dropout before a LoRA matrix: a copy and a mask."""
LOGITS = (4, 4, 4)
"""Bytes per logit when the backward pass begins, all in 32 bit: its log-probability, and the
gradients of both."""


def norm_bytes(transformer: Transformer, *, trained: bool = True) -> int:
    """Return the bytes that both norms keep per token. LayerNorm keeps its input. RMSNorm in
    transformers keeps the input in 32 bit and, if trained, the normalized input."""
    sums = 8  # RMSNorm: one divisor in 32 bit; LayerNorm: two values in 16 bit
    if transformer.shifts:
        return 2 * HALF * transformer.width + sums
    return 2 * (4 + (HALF if trained else 0)) * transformer.width + sums


def scores_bytes(
    transformer: Transformer, tokens: int, *, fused: bool, item_bytes: int = HALF
) -> int:
    """Return the bytes of one token's attention scores.

    FlashAttention (Dao et al. 2022) keeps one 32-bit sum per head. Without it, the softmax is kept
    in 32 bit, and in `item_bytes` per number if that differs. Grouped keys and values are then
    repeated for every head.
    """
    if fused:
        return 4 * transformer.heads
    repeated = 2 * item_bytes * (transformer.query_width - transformer.key_width)
    return transformer.heads * tokens * (4 + (item_bytes if item_bytes < 4 else 0)) + repeated


def layer_bytes(transformer: Transformer, tokens: int, *, fused: bool = True) -> int:
    """Return the bytes that one layer keeps per token of a sequence with `tokens` tokens."""
    width, query, key = transformer.width, transformer.query_width, transformer.key_width
    into_mlp = 4 if transformer.is_gated else 2
    attention = width + query + 2 * key + query
    return (
        norm_bytes(transformer)
        + HALF * (attention + width + into_mlp * transformer.mlp_width)
        + scores_bytes(transformer, tokens, fused=fused)
    )


def lora_layer_bytes(transformer: Transformer, tokens: int, rank: int) -> int:
    """Return the bytes per token of a frozen layer with a LoRA on each matrix. Each LoRA keeps its
    input after dropout, and the product with its first matrix."""
    inputs = sum(columns for _, columns in transformer.matrices)
    # Values that only a trained matrix or norm needs.
    not_kept = 2 * transformer.width + transformer.mlp_width
    return (
        layer_bytes(transformer, tokens)
        - (norm_bytes(transformer) - norm_bytes(transformer, trained=False))
        - HALF * not_kept
        + LORA_DROPOUT * inputs
        + HALF * rank * len(transformer.matrices)
    )


def adapted_layer_bytes(
    transformer: Transformer, tokens: int, rank: int, item_bytes: int, *, fused: bool = True
) -> int:
    """Return the bytes per token of a frozen layer with 32-bit adapters without dropout.
    `item_bytes`: bytes per number of the layer. In a 16-bit layer, each matrix keeps its input in
    32 bit."""
    width, query, key = transformer.width, transformer.query_width, transformer.key_width
    inside = transformer.mlp_width
    norms = norm_bytes(transformer, trained=False) + (
        2 * (item_bytes - HALF) * width if transformer.shifts else 0
    )
    scores = scores_bytes(transformer, tokens, fused=fused, item_bytes=item_bytes)
    # The activation function keeps its input; a gate keeps both factors of the product.
    seen = query if fused or item_bytes == ADAPTED else 0  # attention output
    outputs = query + seen + 2 * key + (3 if transformer.is_gated else 1) * inside
    inputs = (
        2 * width + inside
        if item_bytes == ADAPTED
        else sum(columns for _, columns in transformer.matrices)
    )
    adapters = inputs + rank * len(transformer.matrices)
    return norms + scores + item_bytes * outputs + ADAPTED * adapters


def lora_parameters(transformer: Transformer, rank: int) -> int:
    """Count the parameters of a LoRA on each matrix of each layer (Hu et al. 2021)."""
    return transformer.layers * rank * sum(rows + columns for rows, columns in transformer.matrices)


RANK = 8
NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)
"""Bits per number: the value, an 8-bit scale per block of 64, and a 32-bit scale per 256 blocks."""
BUCKETS = 2 * 200_000_000
"""Numbers that ZeRO 1 and 2 gather and reduce at a time in ms-swift's configurations."""
LIVE = 1_000_000_000
"""Maximum weights that ZeRO 3 gathers at once (stage3_max_live_parameters)."""
ANY_SIZE_PIXELS = 1280 * 28 * 28
"""Assumed pixels per image for a vision encoder of any size, from Qwen2.5-VL's model card."""
KORTHIKANTI = "Korthikanti et al. 2022, Reducing Activation Recomputation (arXiv:2205.05198)"
QLORA = "Dettmers et al. 2023, QLoRA (arXiv:2305.14314)"


def train_estimate(architecture: Architecture, training: Training) -> TrainEstimate:
    """Return the memory per GPU for fine-tuning. Raises UsageError for a model that generates no
    text."""
    text = architecture.text
    if text is None or not architecture.writes:
        raise UsageError(
            "this model has no language half to fine-tune",
            hint="Choose a model that generates text, or plan without --train",
        )
    full = training.method == "full"
    if full and architecture.stored:
        raise UsageError(
            f"the checkpoint is in {architecture.stored[0].kind}, which --train full cannot train",
            hint="Choose its original in 16 bit, or --train lora or qlora",
        )
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
            bytes=GPU_WORKSPACE_BYTES + int(FRAGMENTATION * computed),
            why=f"cuBLAS workspace, and {FRAGMENTATION:.0%} of computing memory for fragmentation",
        ),
        TrainTerm(part="context", bytes=CONTEXT_BYTES, why="the driver, and torch's kernels"),
    ]
    notes = tuple(_notes(architecture, training))
    return TrainEstimate(terms=tuple(terms), trained=trained, frozen=frozen, notes=notes)


def _states(
    architecture: Architecture, text: Transformer, training: Training, trained: int, frozen: int
) -> Iterator[TrainTerm]:
    """Yield weights, gradients and optimizer states, after ZeRO sharding."""
    full = training.method == "full"
    states = OPTIMIZERS[training.optimizer] if full else ADAPTER
    shards = {stage: training.gpus if training.zero >= stage else 1 for stage in (1, 2, 3)}

    def cut(stage: int) -> str:
        return f" / {shards[stage]} GPUs" if shards[stage] > 1 else ""

    if training.method == "qlora":
        packed, size, how, source = _quantized(architecture, text)
        yield TrainTerm(
            part="weights",
            bytes=size // shards[3],
            why=f"{packed / 1e6:,.0f} M numbers {how}{cut(3)}",
            source=source,
        )
        frozen -= packed
    if frozen:
        yield TrainTerm(
            part="weights",
            bytes=HALF * frozen // shards[3],
            why=f"{frozen / 1e6:,.0f} M frozen numbers x {HALF} bytes{cut(3)}",
        )
    count = f"{trained / 1e6:,.1f} M trained numbers"
    for part, item_bytes, stage, what in (
        ("weights", states.weight, 3, ""),
        ("gradients", states.gradient, 2, ""),
        ("optimizer", states.optimizer, 1, f": {states.keeps}"),
    ):
        yield TrainTerm(
            part=part,
            bytes=int(trained * item_bytes) // shards[stage],
            why=f"{count} x {item_bytes:g} bytes{cut(stage)}{what}",
            source=states.source,
        )
    if states.step:
        yield TrainTerm(
            part="step",
            bytes=trained * states.step // shards[1],
            why=f"{count} x {states.step} bytes: roots of moments, computed for all parameters at "
            "once by an unfused step",
            source=states.source,
            moment="step",
        )


def _quantized(architecture: Architecture, text: Transformer) -> tuple[int, int, str, str]:
    """Return the number of quantized frozen weights, their bytes, how they are held, and the
    source of that."""
    if architecture.stored:
        packs = [layer for layer in architecture.stored if layer.packs]
        packed = sum(layer.rows * layer.columns for layer in packs)
        size = sum(layer.packed_bytes for layer in packs)
        return packed, size, "as stored, unpacked layer by layer", ""
    packed = text.layers * text.linear_parameters
    return packed, int(packed * NF4_BITS / 8), f"x {NF4_BITS:.3f} bits in nf4", QLORA


def _gathered(architecture: Architecture, training: Training, trained: int) -> Iterator[TrainTerm]:
    if training.gpus < 2 or not training.zero:
        return
    if training.zero == 3:
        whole = min(LIVE, architecture.parameters)
        why = f"gathered weights, {whole / 1e6:,.0f} M x {HALF} bytes"
    else:
        whole = min(BUCKETS, 2 * trained)
        why = f"buckets gathered and reduced at a time, {whole / 1e6:,.0f} M x {HALF} bytes"
    yield TrainTerm(part="gathered", bytes=HALF * whole, why=why, source=ZERO)


def _computing(
    architecture: Architecture, text: Transformer, training: Training
) -> Iterator[TrainTerm]:
    rows = training.batch * training.length
    size_text = f"{training.batch} x {training.length:,} tokens"
    if training.method == "full":
        layer_activations = layer_bytes(text, training.length)
    else:
        layer_activations = lora_layer_bytes(text, training.length, RANK)
    logits = sum(LOGITS) * architecture.vocabulary * rows
    # Gradients inside one layer take as much as its activations.
    inside = pass_bytes(text, 1, rows, HALF)
    if training.checkpointing:
        bytes_kept = HALF * text.width * text.layers * rows
        why = f"{size_text} x {text.layers} layers x {HALF * text.width:,} bytes, their inputs"
        recomputed = rows * layer_activations + inside
    else:
        bytes_kept = layer_activations * text.layers * rows
        why = f"{size_text} x {text.layers} layers x {layer_activations:,} bytes"
        recomputed = inside
    yield TrainTerm(
        part="activations", bytes=bytes_kept, why=why, source=KORTHIKANTI, moment="backward"
    )
    copies = " + ".join(map(str, LOGITS))
    if logits >= recomputed:
        why = f"{size_text} x {architecture.vocabulary:,} words x ({copies}) bytes, with gradients"
        yield TrainTerm(part="logits", bytes=logits, why=why, moment="backward")
    else:
        what = "one recomputed layer, with" if training.checkpointing else "inside one layer:"
        why = f"{what} its gradients ({gib(logits)} of logits are freed before)"
        yield TrainTerm(
            part="layer", bytes=recomputed, why=why, source=KORTHIKANTI, moment="backward"
        )
    if training.method == "qlora":
        largest = max(rows * columns for rows, columns in text.matrices)
        why = f"the largest matrix unpacked: {largest / 1e6:,.0f} M x {HALF} bytes"
        yield TrainTerm(part="unpacked", bytes=HALF * largest, why=why, moment="backward")
    if architecture.vision is not None:
        # It runs without gradients before the language half.
        images, vision = training.batch * training.frames, architecture.vision
        tokens = vision.positions or max(1, image_pixels(vision) // vision.patch**2)
        yield TrainTerm(
            part="vision",
            bytes=pass_bytes(vision, images, tokens, HALF),
            why=f"{counted(images, 'image')} x {tokens:,} tokens through the frozen vision encoder",
            moment="vision",
        )


def image_pixels(vision: Transformer) -> int:
    """Return the assumed pixels of an encoded image."""
    return vision.image_size**2 or ANY_SIZE_PIXELS


def _notes(architecture: Architecture, training: Training) -> Iterator[str]:
    if training.zero and training.gpus < 2:
        yield f"ZeRO {training.zero} saves nothing on a single GPU"
    if training.gpus > 1 and not training.zero:
        yield f"each of {training.gpus} GPUs holds everything; --zero shards it"
    if training.zero == 3 and training.method == "qlora":
        yield "DeepSpeed's ZeRO 3 does not support nf4 weights; FSDP does"
    if training.method == "full" and training.optimizer != "mixed":
        yield "without a 32-bit master copy, 16-bit weights lose the smallest updates"
    if architecture.text is not None and architecture.text.mixed:
        yield "mixture of experts: activations of experts are not counted"
    vision = architecture.vision
    if vision is not None and training.frames:
        edge = int(image_pixels(vision) ** 0.5)
        places = training.frames * vision.handed_over(edge)
        if places > training.length:
            yield (
                f"{places:,} tokens of {counted(training.frames, 'image')} exceed the "
                f"{training.length:,} tokens of a sample: give --max-length or fewer --frames"
            )


MIN_LENGTH = 256
"""Minimum tokens of a sample that is suggested."""
MAX_GPUS = 64
NAMED = 3
LIGHTER: dict[Method, tuple[Method, ...]] = {
    "full": ("lora", "qlora"),
    "lora": ("qlora",),
    "qlora": (),
}


def changes(
    architecture: Architecture, training: Training, limit: int
) -> list[tuple[str, TrainEstimate]]:
    """Return option changes that fit, with estimates: the first of each kind, mildest first."""
    fitting: list[tuple[str, TrainEstimate]] = []
    kinds = set()
    for kind, options, other in _variants(training):
        if kind not in kinds:
            estimate = train_estimate(architecture, other)
            if estimate.peak_bytes <= limit:
                kinds.add(kind)
                fitting.append((options, estimate))
    return fitting[:NAMED]


def _variants(training: Training) -> Iterator[tuple[str, str, Training]]:
    """Yield the kind, options and settings of each change. All use gradient checkpointing."""
    recomputed = "" if training.checkpointing else " --checkpointing"
    checkpointed = replace(training, checkpointing=True)
    if recomputed:
        yield "again", recomputed.strip(), checkpointed
    if training.batch > 1:
        yield "batch", f"--batch-size 1{recomputed}", replace(checkpointed, batch=1)
    gpus = 2
    while gpus <= MAX_GPUS and training.method != "qlora":
        if gpus > training.gpus or training.zero < 3:
            more = replace(checkpointed, zero=3, gpus=max(gpus, training.gpus))
            yield "gpus", f"--zero 3 --gpus {more.gpus}{recomputed}", more
        gpus *= 2
    for method in LIGHTER[training.method]:
        other = replace(checkpointed, method=method, optimizer="mixed")
        yield "method", f"--train {method}{recomputed}", other
    length = training.length // 2
    while length >= MIN_LENGTH:
        yield "length", f"--max-length {length}{recomputed}", replace(checkpointed, length=length)
        length //= 2
