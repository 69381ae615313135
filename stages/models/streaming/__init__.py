"""Runs a half that is larger than the device: each layer is loaded in turn, once for many
batches."""
