"""Shows people what a run did, as one HTML file. It is made from what the run wrote, and no part of
it."""
