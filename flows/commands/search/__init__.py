"""Fills vector indexes and searches them. Runs stages only through `flows.execution`."""
