"""The same as Prefect flows, and all that speaks to Prefect's server."""
