"""From options to a job whose work is known: media, checkpoint, cache keys, and a plan."""
