"""Exports the encoders of a half as ONNX graphs."""
