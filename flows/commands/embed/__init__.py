"""Everything of `penstock embed` but its stages."""
