"""Options of the commands: option groups, and the configurations that inherit them."""
