"""The page of `penstock serve`, as a browser receives it."""
