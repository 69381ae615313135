"""Everything of `penstock plan` but its stages."""
