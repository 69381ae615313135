"""What computing a half takes beside its weights, told from runs on tensors without data; imports
no model library."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """One run of a half on tensors without data, in the checkpoint's own dtype."""

    kind: str
    """`image` or `video`."""
    rows: int
    """Chunks in the batch."""
    units: int
    """Of the encoder: numbers of pixel input a chunk. Of the decoder: tokens a prompt has."""
    peak_bytes: int
    """Most that lives at one moment beside the weights; inputs and outputs included."""
    kept_bytes: int
    """Of the encoder: the features that it hands over. Of the decoder: the KV cache after the
    prompt."""
    flops: int
    """Floating-point operations of the encoder's pass, or of reading the prompts."""
    step_flops: int = 0
    """Of one more token of every row."""
