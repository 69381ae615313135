"""The page of `penstock review`, as it is sent to a browser."""
