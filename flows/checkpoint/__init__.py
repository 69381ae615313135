"""The checkpoint of a run: files, profile, precision, adapters, graphs and context length."""
