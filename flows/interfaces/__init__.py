"""How commands are called: by the command line, servers with pages, Prefect, and Ray."""
