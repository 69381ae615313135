"""Python imports this by itself at its start where this folder is on the path: fork servers are
forked from the warm process, if there is one (`scripts/warm.py`)."""

import os
import sys

if sys.orig_argv[-2:-1] == ["stages.process.fork_server"] and "WARM_PROCESS" in os.environ:
    from scripts.warm import take_over

    take_over()
