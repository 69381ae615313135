"""Computes the memory that a transformer layer uses while it runs, from its dimensions.

The numbers follow the transformers classes without gradients. Four tensors of an encoder's width
are live besides a layer's own results: the encoder's input, the residual stream before and after
attention, and its normalized copy. Within a layer, either the attention results or the MLP results
are live. Fused attention stores no scores.
"""

from flows.planning.transformer import Transformer

STREAM_ROWS = 4
"""Values per token, in multiples of the width, besides those of one layer."""
SCORES_BYTES = 4
"""Bytes of an attention score: softmax is computed in 32 bit."""
ROTARY_ROWS = 14
"""Values per token, in multiples of the width, of a vision encoder with rotary embeddings: queries,
keys and values, and queries and keys in 32 bit before and after rotation."""


def pass_bytes(
    transformer: Transformer, sequences: int, tokens: int, each: int, *, fused: bool = True
) -> int:
    """Return the peak bytes of a forward pass of `sequences` through a transformer. `each`: bytes
    per number."""
    rows = sequences * tokens
    stream = STREAM_ROWS * transformer.width * each
    attention = attention_bytes(transformer, each)
    if fused:
        return rows * (stream + max(attention, mlp_bytes(transformer, each)))
    scores = tokens * transformer.heads * (each + SCORES_BYTES)
    return rows * (stream + max(attention + scores, mlp_bytes(transformer, each)))


def attention_bytes(transformer: Transformer, each: int) -> int:
    """Return the bytes of one token's query, key, value and attention output."""
    if transformer.kind == "vision" and not transformer.positions:
        return ROTARY_ROWS * transformer.width * each
    return (2 * transformer.attention.query_width + 2 * transformer.attention.key_width) * each


def mlp_bytes(transformer: Transformer, each: int) -> int:
    """Return the bytes of one token in the MLP.

    They are the values before and after the activation function. A gate adds the product; an
    activation function of several steps adds an intermediate result.
    """
    steps = 2 if transformer.plain and not transformer.mlp.gated else 3
    return steps * transformer.mlp.width * each
