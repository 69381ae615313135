"""Writes checkpoints as safetensors files of bounded size. Each file is written completely or not
at all, so a killed writer can resume."""

SHARD_BYTES = 2 << 30
"""A file of weights takes no tensor that would bring it above so much; a single tensor may be
larger. It is also what is made again, at most, after a process died."""
NOTE = "penstock_made_of.json"
"""File that says what a folder was made of."""
