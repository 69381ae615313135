"""What a trainer sees of a data set that a run wrote: of captions, and of media."""
