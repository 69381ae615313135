"""What a half computes in and how it is quantized; knows nothing of pictures or text."""
