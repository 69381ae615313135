"""Options of the commands: groups of them, and the configurations that inherit the groups."""
