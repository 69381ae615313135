"""Says in which types a half computes and how it is quantized; knows nothing of pictures or
text."""
