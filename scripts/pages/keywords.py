"""Derives the typed keywords of `penstock.caption` and its siblings from the options of the
commands: `python -m scripts.pages.keywords` writes `penstock/keywords.py`. A test says when it is
old."""

from collections.abc import Iterable
from pathlib import Path

from artifacts.options import Declared, declared
from flows.commands.export.options import ExportConfig
from flows.core.options.commands import CaptionConfig, RebuildConfig
from flows.core.options.hit_questions import AskHitsOptions
from flows.core.options.questions import AskConfig
from flows.core.options.serving import ServeConfig
from flows.core.options.training import LearnConfig, TuneConfig
from flows.core.options.vectors import (
    EmbedConfig,
    IndexConfig,
    LabelConfig,
    SearchPlace,
    SearchQuery,
    SiftConfig,
)

FILE = Path(__file__).parents[2] / "penstock" / "keywords.py"
HEAD = '''"""The options of commands as keywords. `python -m scripts.pages.keywords` writes this."""

from collections.abc import Sequence
from os import PathLike
from typing import Any, Required, TypedDict

Words = str | Sequence[str]
"""Texts in a list, or in one text with commas between, as the command line takes them."""
'''
WIDER = {
    "calibrate": "str | PathLike[str] | Sequence[str | PathLike[str]]",
    "journal": "str | PathLike[str] | Sequence[str | PathLike[str]]",
    "labels": "str | PathLike[str] | Sequence[str]",
    "memory": "str | int | None",
    "max_store": "str | int | None",
    "min_age": "str | float | None",
    "schema": "str | PathLike[str] | dict[str, Any]",
}
"""Keyword → its type, where programs may give more than the field holds."""


def type_of(option: Declared) -> str:
    """Return the type of a keyword, as source text."""
    if option.name in WIDER:
        return WIDER[option.name]
    if option.option.path and option.type is str:
        return "str | PathLike[str]"
    if option.kind is tuple:
        return "Words"
    return option.type.__name__ if isinstance(option.type, type) else str(option.type)


def source() -> str:
    """Return the text of the module."""
    features = [each for each in declared(RebuildConfig) if each.name != "sources"]
    vectors = [each for each in declared(IndexConfig) if each.name != "sources"]
    search = (*declared(SearchQuery), *declared(AskHitsOptions), *declared(SearchPlace))
    both = set(map(_line, features)) & set(map(_line, vectors))
    shared = [each for each in features if _line(each) in both]
    captions, labels = declared(CaptionConfig), declared(LabelConfig)
    embedding = declared(EmbedConfig)
    base, runs = "TypedDict", "MediaRunOptions"
    classes: list[tuple[str, str, str, Iterable[Declared]]] = [
        (runs, base, "each run over media", shared),
        ("CaptionOptions", "FeatureOptions", "a caption run", _others(captions, features)),
        ("VectorOptions", runs, "`index`", _others(vectors, shared)),
        ("EmbedOptions", "VectorOptions", "`embed`", _others(embedding, vectors)),
        ("LabelRunOptions", runs, "`label`", _others(labels, shared)),
        ("AskOptions", runs, "`ask`", _others(declared(AskConfig), shared)),
        ("SiftRunOptions", runs, "`sift`", _others(declared(SiftConfig), shared)),
        ("SearchOptions", base, "`search`", _without(search, "what")),
        ("TuneOptions", base, "`tune`", _without(declared(TuneConfig), "data")),
        ("LearnOptions", base, "`learn`", _without(declared(LearnConfig), "out")),
        ("ExportOptions", base, "`export`", _without(declared(ExportConfig), "model")),
        ("ServeOptions", base, "`serve`", declared(ServeConfig)),
    ]
    made = [
        _class(name, of, f"The options of {what}.", fields) for name, of, what, fields in classes
    ]
    decides = "The options that decide features."
    made.insert(1, _class("FeatureOptions", runs, decides, _others(features, shared)))
    return "\n\n".join([HEAD, *made])


def _others(options: Iterable[Declared], known: Iterable[Declared]) -> list[Declared]:
    """Return the options that are not in the class that is inherited from."""
    return _without(options, "sources", *(each.name for each in known))


def _without(options: Iterable[Declared], *names: str) -> list[Declared]:
    return [each for each in options if each.name not in names]


def _class(name: str, base: str, text: str, options: Iterable[Declared]) -> str:
    fields = "".join(map(_line, options))
    return f'class {name}({base}, total=False):\n    """{text}"""\n\n{fields}'


def _line(option: Declared) -> str:
    kind = type_of(option)
    return f"    {option.name}: {f'Required[{kind}]' if option.is_required else kind}\n"


if __name__ == "__main__":
    FILE.write_text(source(), encoding="utf-8")
