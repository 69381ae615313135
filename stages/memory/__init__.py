"""Measures and bounds the memory and time that computing takes; knows no model and no stage by
name."""
