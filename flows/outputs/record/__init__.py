"""`run.json`, and what other commands leave in a folder: written, read, and told."""
