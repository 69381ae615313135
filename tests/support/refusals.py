"""What a refused command says."""

from flows.core.console.display import READING


def one_line(errors: str) -> str:
    """The line that a command says of an error: the only one but for what it was doing."""
    lines = [line for line in errors.splitlines() if line != READING]
    assert len(lines) == 1, errors
    return lines[0]
