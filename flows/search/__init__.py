"""Fills indexes with vectors and searches them; runs stages by way of `flows.running` alone."""
