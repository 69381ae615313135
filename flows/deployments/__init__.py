"""Prefect flows of the commands. The only package that imports Prefect."""

import os

# Before the first import of Prefect, which reads them once.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
# What scripts/prepare_pool.py reckons with; Prefect's own 180 s is too long to wait for four times.
os.environ.setdefault("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "30")
# Of a command; in a deployment, Prefect was imported already. Each try waits twice as long as the
# one before, and how long the run waits is decided in flows/deployments/patience.py.
os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "2")
