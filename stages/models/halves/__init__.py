"""Splits a model into two halves, and loads and runs each."""
