"""Makes a job of what is asked and what is there: sources, model, keys, budget."""
