"""What the pages show: the commands in them, what their placeholders mean, how they are tried."""
