"""Reads and writes everything that Penstock stores on disk. Imports nothing from `stages` or
`flows`.

A path is text in Python, and bytes on the disk and in files. The only way between them is
`os.fsencode` and `os.fsdecode`, and in this program both mean UTF-8, whatever the locale is: bytes
that are no UTF-8 become half surrogates, and back. Libraries and JSON take text for UTF-8, too.
"""

import os
import sys

if (_codec := sys.getfilesystemencoding()) != "utf-8":  # it cannot be changed while Python runs
    raise ImportError(
        f"Python takes names of files for {_codec} in this locale, and would write wrong ones. Set "
        "PYTHONUTF8=1 before Python starts, or LANG=C.UTF-8"
    )
if sys.flags.utf8_mode:  # perhaps by -X, which child processes do not inherit
    os.environ["PYTHONUTF8"] = "1"
