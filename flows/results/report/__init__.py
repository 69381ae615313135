"""What a run did, as one HTML file for people: made from what the run wrote, and no part of it."""
