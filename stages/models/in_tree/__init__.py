"""In-tree models: families that transformers lacks, computed by this project's code from their
published files.

Only `registry` names the families; each has a package next to it.
"""
