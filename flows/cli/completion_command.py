"""Implements `penstock completion`: prints the completion script of a shell."""

import argparse


def completion_command(given: argparse.Namespace) -> int:
    """Print the script of a shell, and return 0."""
    import shtab

    from flows.cli.main import parser

    print(shtab.complete(parser(), given.shell))
    return 0
