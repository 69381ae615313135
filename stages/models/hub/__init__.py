"""A checkpoint's files, on this machine and on a model hub; knows nothing of what is in them."""
