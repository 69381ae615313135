"""Estimates the resources for fine-tuning a model. Trains nothing."""
