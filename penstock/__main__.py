"""Runs the command: `python -m penstock` is `penstock`."""

import sys

from penstock.start import main

if __name__ == "__main__":
    sys.exit(main())
