"""Puts on disk everything that Penstock makes."""
