"""One page from a folder to captions: choose, plan, run, correct and write."""
