"""The command `penstock watch`."""
