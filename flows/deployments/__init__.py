"""Offers the same as Prefect flows, and holds all that speaks to Prefect's server."""

import os

# Before the first import of Prefect, which reads them once.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
# What scripts/prepare_pool.py reckons with; Prefect's own 180 s is too long to wait for four times.
os.environ.setdefault("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "30")
