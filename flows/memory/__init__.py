"""What a run may take of the machine, what it is expected to take, and what it does when that was
wrong."""
