"""What a layer of a transformer takes while it computes, by its dimensions; knows no weights.

Counted as the classes of transformers compute without gradients: between two layers goes the
residual stream; inside one live, beside it, its normalised copy and either what attention or what
the MLP makes. Fused attention keeps no scores."""

from flows.memory.outline import Tower

SCORES_BYTES = 4
"""Softmax is computed in 32 bit."""


def pass_bytes(tower: Tower, sequences: int, tokens: int, each: int, *, fused: bool = True) -> int:
    """Most that lives at once while so many sequences go through a tower; `each`: bytes of a
    number."""
    rows = sequences * tokens
    stream = 2 * tower.width * each
    inside = max(attention_bytes(tower, each), mlp_bytes(tower, each))
    if fused:
        return rows * (stream + inside)
    scores = rows * tokens * tower.heads * (each + SCORES_BYTES)
    return max(rows * (stream + inside), rows * (stream + attention_bytes(tower, each)) + scores)


def attention_bytes(tower: Tower, each: int) -> int:
    """Of one token: query, keys, values, and what comes out of attention."""
    return (2 * tower.attention.query_width + 2 * tower.attention.key_width) * each


def mlp_bytes(tower: Tower, each: int) -> int:
    """Of one token: what leads in before and after its nonlinearity; gated, the product too."""
    return (3 if tower.mlp.gated else 2) * tower.mlp.width * each


def logits_bytes(vocabulary: int, rows: int, each: int) -> int:
    """Of the last token of every row, as computed and in 32 bit."""
    return rows * vocabulary * (each + SCORES_BYTES)


def pass_flops(tower: Tower, sequences: int, tokens: int) -> int:
    """Two a number of every matrix and token, and four a pair of tokens in attention."""
    rows = sequences * tokens
    each = 2 * tower.linear_parameters + 4 * tokens * tower.attention.query_width
    return rows * tower.layers * each


def step_flops(tower: Tower, vocabulary: int, rows: int) -> int:
    """Of one more token of every row."""
    return 2 * rows * (tower.layers * tower.linear_parameters + vocabulary * tower.width)
