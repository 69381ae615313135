"""Writes checkpoints as safetensors files of bounded size. Each file is written completely or not
at all, so a killed writer can resume."""

SHARD_BYTES = 2 << 30
"""Maximum bytes of a weight file; only a single larger tensor exceeds it. At most this much is
written again after a process died."""
NOTE = "penstock_made_of.json"
"""File that records the source of a folder."""
