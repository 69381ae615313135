"""Everything of `penstock doctor` but its stages."""
