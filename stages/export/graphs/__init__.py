"""Makes ONNX graphs of the towers of a half."""
