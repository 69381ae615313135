"""Serves the captions of a run to one person, who corrects, accepts and rejects them; runs no
model."""
