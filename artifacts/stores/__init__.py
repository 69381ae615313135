"""Where objects may lie: the port that every store has, and the stores; knows nothing of what the
objects mean."""
