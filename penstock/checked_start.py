"""Starts the command `penstock`. It checks that the packages it imports are Penstock's own.

Three of its packages have names that other projects use, too. If PYTHONPATH contains a folder of
such a name, Penstock's own location is put before it. If another installed package overwrote
Penstock's files, the command reports it.
"""

import os
import signal
import sys
from functools import cache
from importlib.util import find_spec
from io import TextIOWrapper
from pathlib import Path

PACKAGES = ("flows", "stages", "artifacts", "penstock_demo")
HERE = Path(__file__).resolve().parent.parent
"""The folder in which all of Penstock's packages lie."""
ENVIRONMENT = 5
"""Exit code of a fault of the environment."""
INTERRUPTED = 4
"""Exit code of a command that was stopped."""


def main() -> int:
    """Run the command; returns its exit code."""
    open_closed_streams()
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    if os.getpid() == 1:  # the kernel drops signals without a handler
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    try:
        use_utf8()
        return _run()
    except KeyboardInterrupt:  # before the command began, or a second one while it ended
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing but the interpreter is left to end
        if signal.getsignal(signal.SIGTERM) is signal.default_int_handler:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _run() -> int:
    if any(_origin(name) != HERE / name / "__init__.py" for name in PACKAGES):
        sys.path.insert(0, str(HERE))
    error = intruder()
    if error:
        print(f"penstock: {error}", file=sys.stderr)
        return ENVIRONMENT
    from flows.core.console.interrupts import repeating_dropped_interrupts

    with repeating_dropped_interrupts():
        from flows.interfaces.cli.main import main as command

        return command()


def open_closed_streams() -> None:
    """Let standard streams that are closed, as a daemon's are, lead to /dev/null. Otherwise files
    get their descriptors, and what a library prints goes into one of them."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free descriptor
        if getattr(sys, name) is None:
            mode = "w" if number else "r"
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", errors="replace"))


def use_utf8() -> None:
    """Start this process again in Python's UTF-8 mode, unless names of files are UTF-8 in this
    locale. What standard output cannot encode becomes `?`."""
    if sys.getfilesystemencoding() != "utf-8":
        # Not sys.orig_argv: not every codec gives back the bytes of the words.
        program, *words = Path("/proc/self/cmdline").read_bytes().split(b"\0")[:-1]
        os.execv(sys.executable, [program, b"-X", b"utf8", *words])  # also where -I or -E is given
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


@cache
def intruder() -> str:
    """Say what stands in the place of one of our packages; empty where all is ours. It says what to
    do, too."""
    by_itself = "Install Penstock by itself: python -m venv, then pip install there"
    recorded = _recorded()
    for name in PACKAGES:
        own, origin = HERE / name / "__init__.py", _origin(name)
        if origin is None or not own.is_file():
            return f"its package {name} is not in {HERE}. {by_itself}"
        if origin != own:
            return f"{origin} is imported instead of Penstock's {name}. Take it off PYTHONPATH"
        digest = _digest(own)
        if recorded.get(f"{name}/__init__.py", digest) != digest:
            return f"another package wrote its {name} over Penstock's in {HERE}. {by_itself}"
    return ""


def _origin(name: str) -> Path | None:
    """Return the file that would be imported under this name."""
    spec = find_spec(name)
    return Path(spec.origin).resolve() if spec is not None and spec.origin else None


def _recorded() -> dict[str, str]:
    """Return the digests that our files had when Penstock was installed, by their names. There are
    none of ours in a clone."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        files = distribution("penstock").files or []
    except PackageNotFoundError:
        return {}
    return {file.as_posix(): file.hash.value for file in files if file.hash is not None}


def _digest(path: Path) -> str:
    """Return a digest as wheels record it."""
    # Imported here, as Ctrl-C during the imports of this module prints a traceback.
    from base64 import urlsafe_b64encode
    from hashlib import sha256

    return urlsafe_b64encode(sha256(path.read_bytes()).digest()).rstrip(b"=").decode()
