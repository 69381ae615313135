"""Has ONNX graphs compute towers of a half in torch's stead. Imports no model library."""

FOLDER = "onnx"
"""Folder of a checkpoint that has its graphs."""
