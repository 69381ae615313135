"""Everything a run needs to know about its checkpoint: profile, precision, adapter, graphs and
frame limits."""
