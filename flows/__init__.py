"""Runs stages one after another; none of its rooms imports one above it. The rooms are commands,
deployments, upkeep, running, results, planning and the job."""
