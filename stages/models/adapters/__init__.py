"""Reads adapters as PEFT writes them, tells whether they fit a model, and puts them into a half."""
