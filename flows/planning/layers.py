"""Computes the memory that a transformer layer uses while it runs, from its dimensions.

The numbers follow the transformers classes without gradients; `scripts/plan_table.py` compares them
with dry runs on the meta device. Four tensors of an encoder's width are live besides a layer's own
results: the encoder's input, the residual stream before and after attention, and its normalized
copy. Within a layer, either the attention results or the MLP results are live. Fused attention
stores no scores.
"""

from flows.planning.towers import Tower

STREAM_ROWS = 4
"""Rows of a tower's width beside what one layer makes."""
SCORES_BYTES = 4
"""Bytes of a score: softmax is computed in 32 bit."""
TURNED_ROWS = 14
"""Rows of a vision tower that turns its queries and keys by place: those, values, and both in 32
bit before and after."""


def pass_bytes(tower: Tower, sequences: int, tokens: int, each: int, *, fused: bool = True) -> int:
    """Return most bytes that live at once while so many sequences go through a tower. `each` are
    the bytes of a number."""
    rows = sequences * tokens
    stream = STREAM_ROWS * tower.width * each
    attention = attention_bytes(tower, each)
    if fused:
        return rows * (stream + max(attention, mlp_bytes(tower, each)))
    scores = tokens * tower.heads * (each + SCORES_BYTES)
    return rows * (stream + max(attention + scores, mlp_bytes(tower, each)))


def attention_bytes(tower: Tower, each: int) -> int:
    """Return the bytes of one token's query, keys, values, and what comes out of attention."""
    if tower.kind == "vision" and not tower.positions:
        return TURNED_ROWS * tower.width * each
    return (2 * tower.attention.query_width + 2 * tower.attention.key_width) * each


def mlp_bytes(tower: Tower, each: int) -> int:
    """Return the bytes of one token in the MLP. They are what leads in before and after its
    nonlinearity; gated, the product too, and without a gate what a nonlinearity of several steps
    makes in between."""
    steps = 2 if tower.plain and not tower.mlp.gated else 3
    return steps * tower.mlp.width * each


def logits_bytes(vocabulary: int, rows: int, each: int) -> int:
    """Return the bytes of the last token of every row, as computed and in 32 bit."""
    return rows * vocabulary * (each + SCORES_BYTES)


def pass_flops(tower: Tower, sequences: int, tokens: int) -> int:
    """Count two a number of every matrix and token, and four a pair of tokens in attention."""
    rows = sequences * tokens
    each = 2 * tower.linear_parameters + 4 * tokens * tower.attention.query_width
    return rows * tower.layers * each


def step_flops(tower: Tower, vocabulary: int, rows: int) -> int:
    """Count the operations of one more token of every row."""
    return 2 * rows * (tower.layers * tower.linear_parameters + vocabulary * tower.width)
