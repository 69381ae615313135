"""Everything of `penstock label` but its stages."""
