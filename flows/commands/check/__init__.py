"""The check of data sets: what a trainer would not see of captions and media."""
