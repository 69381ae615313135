"""Maintains the store: rebuilds features and removes old records."""
