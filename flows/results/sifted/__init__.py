"""Marks of media as tables, lists and pages."""
