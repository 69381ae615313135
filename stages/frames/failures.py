"""Tells which failures of a medium say nothing of what it holds."""

from artifacts.remote.keeping import UNREACHABLE
from artifacts.stamps import CHANGED

PASSING = frozenset(("missing", "unreadable"))
"""Kinds of failure of a file that could be read a moment ago, when its disk goes away: no fault of
the file, and not to be remembered as one."""

NOT_REMEMBERED = frozenset((CHANGED, UNREACHABLE))
"""Kinds of failure that say nothing of what a file holds: the next run tries it again."""
