"""Media files of a run: their locations, their contents, and the texts that users wrote for
them."""
