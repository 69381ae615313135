"""Where torch's compiler leaves things; compiles nothing."""

import os
from pathlib import Path


def compiler_folder() -> str:
    """Where torch's compiler may leave what it makes, which is at least a folder as soon as it is
    imported: left to itself it takes the one for temporary files. Empty where none can be made."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(base, "penstock", "torchinductor")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return ""
    return str(folder) if os.access(folder, os.W_OK) else ""
