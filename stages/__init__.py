"""Pipeline stages: functions from artifacts to artifacts, each run in its own process. Imports
neither Prefect nor the command line."""
