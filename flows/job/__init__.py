"""What is asked, and what is there: configuration, sources, model, keys, budget."""
