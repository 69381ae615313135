"""A small dual encoder of the demo's world: its pictures, its words and the script that trained it.

Importing the package knows no torch and no numpy.
"""
