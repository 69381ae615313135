"""Runs a half that is larger than the device: its layers come in turn, each once for many
batches."""
