"""The page of `penstock review`, as a browser receives it."""
