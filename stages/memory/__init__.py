"""What computing takes of a device, and what is allowed: knows no model and no stage by name."""
