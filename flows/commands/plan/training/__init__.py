"""Estimates fine-tuning from dimensions alone."""
