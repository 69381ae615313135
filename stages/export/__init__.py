"""Writes a checkpoint in another form: fewer bits, or another program's format."""
