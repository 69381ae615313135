"""Everything of `penstock demo` but its stages."""
