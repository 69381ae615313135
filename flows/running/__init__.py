"""Takes a job from its first stage to its last: waves, steps, a rung down, an end in order."""
