"""Everything of `penstock status` but its stages."""
