"""Prefect flows of the commands. The only package that imports Prefect."""

import os

# Prefect reads these once, at its first import.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
# scripts/prepare_pool.py relies on this; Prefect's own 180 s is too long to wait four times.
os.environ.setdefault("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "30")
# For a command; in a deployment, Prefect was imported earlier. Each retry waits twice as long as
# the last. flows/deployments/patience.py decides how long the run waits.
os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "2")
