"""Gives people and programs what a run leaves: outputs, record, status, report."""
