"""Everything of `penstock export` but its stages."""
