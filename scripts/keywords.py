"""Derives the typed keywords of `penstock.caption` and its siblings from the options of the
commands: `python -m scripts.keywords` writes `penstock/keywords.py`. A test says when it is old."""

from collections.abc import Iterable
from pathlib import Path

from artifacts.options import Declared, declared
from flows.options.commands import CaptionConfig
from flows.options.rebuild import RebuildConfig
from penstock.arguments import PATHS

FILE = Path(__file__).parents[1] / "penstock" / "keywords.py"
HEAD = '''"""The command line's options as keywords. `python -m scripts.keywords` writes this."""

from collections.abc import Sequence
from os import PathLike
from typing import Any, TypedDict

Words = str | Sequence[str]
"""Texts in a list, or in one text with commas between, as the command line takes them."""
'''
WIDER = {"memory": "str | int | None", "schema": "str | PathLike[str] | dict[str, Any]"}
"""Keyword → its type, where programs may give more than the field holds."""


def type_of(option: Declared) -> str:
    """Return the type of a keyword, as source text."""
    if option.name in WIDER:
        return WIDER[option.name]
    if option.name in PATHS:
        return "str | PathLike[str]"
    if option.kind is tuple:
        return "Words"
    return option.type.__name__ if isinstance(option.type, type) else str(option.type)


def source() -> str:
    """Return the text of the module."""
    features = [each for each in declared(RebuildConfig) if each.name != "sources"]
    named = {"sources", *(each.name for each in features)}
    others = [each for each in declared(CaptionConfig) if each.name not in named]
    return "\n\n".join(
        [
            HEAD,
            _class("FeatureOptions", "TypedDict", "The options that decide features.", features),
            _class("CaptionOptions", "FeatureOptions", "The options of a caption run.", others),
        ]
    )


def _class(name: str, base: str, text: str, options: Iterable[Declared]) -> str:
    fields = "".join(f"    {each.name}: {type_of(each)}\n" for each in options)
    return f'class {name}({base}, total=False):\n    """{text}"""\n\n{fields}'


if __name__ == "__main__":
    FILE.write_text(source(), encoding="utf-8")
