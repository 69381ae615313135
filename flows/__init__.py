"""What runs after what: the stage sequence, the Prefect flows around it, and the command line."""
