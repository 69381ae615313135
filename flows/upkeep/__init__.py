"""Looks after the store: features are rebuilt, what is old is removed."""
