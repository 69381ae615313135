"""Everything of `penstock caption` but its stages."""
