"""Reads linear layers that other programs quantized: AWQ, GPTQ, compressed-tensors, FP8."""
