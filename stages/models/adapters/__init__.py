"""Reads PEFT adapters, checks that they fit a model, and injects them into a half."""
