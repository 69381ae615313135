"""The HTML report of a run, made from the files that the run wrote. It is not part of the run."""
