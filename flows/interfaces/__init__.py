"""Who asks: the command line, servers with their pages, Prefect, and Ray."""
