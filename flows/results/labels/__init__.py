"""Labels images from their stored vectors, and writes the labels."""
