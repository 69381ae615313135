"""Media files of a run: where they are, what they hold, and the texts that people gave them."""
