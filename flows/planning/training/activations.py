"""Counts what a layer keeps for its backward pass, by its dimensions, in 16 bit; knows no
optimizer.

After Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models",
equation 1: sbh(34 + 5as/h) bytes a layer. Term by term here, so that it holds for gated MLPs,
grouped heads and fused attention too: without the masks of dropout, and with what the norms of
transformers keep in 32 bit. tests/test_flows_planning_training_activations.py counts what real
layers keep.
"""

from flows.planning.towers import Tower

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
