"""Keys of what a run makes, and what the store has of it."""
