"""Everything of `penstock tune` but its stages."""
