"""Runs a half's encoders as ONNX graphs instead of in torch. Imports no model library."""

FOLDER = "onnx"
"""Folder of a checkpoint that contains its graphs."""
