"""Language halves as GGUF files, run by llama.cpp. Imports no library."""

from importlib.metadata import PackageNotFoundError, version

from artifacts.errors import EnvironmentFault

FILE = "language.gguf"
"""Name of the GGUF file in an exported folder."""
MANIFEST = "gguf.json"
"""Name of the file beside it that says what it was made from."""
FORMAT = 1
"""Version of the manifest."""
ROWS = 8
"""Rows of every decode step. Idle rows are computed too: llama.cpp rounds products of one row
otherwise than those of several, so a caption's bytes would depend on what runs beside it."""
PIECE_TOKENS = 512
"""Tokens of a prompt that are read at once, counted from its first."""
COLUMN_MULTIPLE = 256
"""Tokens by which a sequence's part of the KV cache grows."""
INSTALL = "pip install 'penstock[gguf]' (llama.cpp is compiled, which takes 5 to 20 minutes)"
PACKAGES = ("gguf", "llama-cpp-python")


def check_packages() -> None:
    """Raise EnvironmentFault if a package that reads, writes or runs GGUF files is missing."""
    for name in PACKAGES:
        try:
            version(name)
        except PackageNotFoundError as error:
            raise EnvironmentFault(
                f"{name} is not installed (GGUF files need {' and '.join(PACKAGES)})",
                hint=f"Install them: {INSTALL}",
            ) from error
