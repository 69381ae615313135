"""Runs a command on a Ray cluster, one task per partition of its files. The only package that
imports Ray."""
