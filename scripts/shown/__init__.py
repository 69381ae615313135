"""What the pages show: the commands in them, what their placeholders mean, and how they are tried."""
