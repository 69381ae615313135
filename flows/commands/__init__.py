"""The commands: one folder for each, with its part of the command line."""
