"""Estimates the resources of a job, and selects settings with which it fits."""
