"""What runs after what, a room each for commands, deployments, upkeep, running, results, planning
and the job; none imports a room above it."""
