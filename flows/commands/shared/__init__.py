"""What every command does alike: arguments, the last line, and the report of a crash."""
