"""Is the page of `penstock serve`: what a browser is given, without the server that gives it."""
