"""Serves the captions of a run to one user, who corrects, accepts and rejects them. Runs
no model.
"""
