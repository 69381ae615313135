"""The port that every store has, and the stores."""
