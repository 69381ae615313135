"""Estimates what a job takes, and decides what it is run on so that it fits."""
