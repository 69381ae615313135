"""Finds a checkpoint's files, here and on a model hub; knows nothing of what is in them."""
