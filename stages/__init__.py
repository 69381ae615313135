"""Plain functions from artifacts to artifacts, each run in a process of its own; knows neither
Prefect nor the command line."""
