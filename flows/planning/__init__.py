"""What a job is expected to take, and what it is run on so that it fits."""
