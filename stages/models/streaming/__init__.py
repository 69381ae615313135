"""A half that is larger than the device: its layers come one after the other, each once for many
batches."""
