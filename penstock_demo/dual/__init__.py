"""A small dual encoder of the demo's world: its images, its texts and its training script.

Importing the package imports neither torch nor numpy.
"""
