"""Chooses the types in which a half computes, and its quantization."""
