"""The port that every store has, and the stores; knows nothing of what the objects mean."""
