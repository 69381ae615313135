"""Writes checkpoints in few bits, and judges them beside what they were made of."""
