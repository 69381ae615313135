"""Estimates what fine-tuning a model would take; nothing is trained."""
