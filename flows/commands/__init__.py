"""What can be asked: one folder for each command, with its part of the command line."""
