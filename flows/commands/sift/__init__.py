"""Everything of `penstock sift` but its stages."""
