"""Finds a checkpoint's files on this machine and on a model hub."""
