"""Names the commands, and finds what they declare.

The program below the commands needs to know of some of them: which stages they run, what these
cost, and what they leave in a folder. How a command says so:

1. The `__init__` of its package holds a DECLARATION, as that of a stage holds its StageSpec.
2. COMMANDS names the package. No package registers itself: one is imported when the first stage,
   cost or folder is looked up.
3. What takes longer to import than the declaration is named in it as `package.module:name`, for
   `pkgutil.resolve_name`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stages.process.stage_spec import StageSpec

COMMANDS = {
    "caption": ("caption videos and images", "flows.commands.caption"),
    "plan": ("estimate memory, disk and time; check that it fits", "flows.commands.plan"),
    "embed": ("compute vectors of images and videos", "flows.commands.embed"),
    "ask": ("answer questions about videos and images", "flows.commands.ask"),
    "label": ("label images and videos", "flows.commands.label"),
    "sift": ("mark media: copies, blur, black and still ones", "flows.commands.sift"),
    "index": ("build and maintain a search index", "flows.commands.search"),
    "search": ("search an index", "flows.commands.search"),
    "watch": ("run a command when files come to rest", "flows.commands.watch"),
    "tune": ("train an adapter on your captions", "flows.commands.tune"),
    "learn": ("train on corrected captions, and caption again", "flows.commands.learn"),
    "serve": ("serve labels, search and captions over HTTP", "flows.interfaces.serve"),
    "studio": ("do all of it in one page", "flows.interfaces.studio"),
    "status": ("print the progress of a run", "flows.commands.status"),
    "report": ("write an HTML report of a run", "flows.commands.report"),
    "review": ("correct and accept captions", "flows.interfaces.studio"),
    "check": ("say what a trainer would not see of a data set", "flows.commands.check"),
    "cache": ("list, check and clean the store", "flows.commands.cache"),
    "convert": ("convert a model's pickled weights to safetensors", "flows.commands.export"),
    "export": ("quantize a model and compare it with the original", "flows.commands.export"),
    "doctor": ("check GPU, drivers and packages", "flows.commands.doctor"),
    "completion": ("print a shell completion script", "flows.interfaces.cli"),
    "demo": ("caption and score demo clips", "flows.commands.demo"),
}
"""Command → its help line, and the package of its module: of `caption`, `caption_command.py` with
`add_caption`, which adds its options, and `caption_command`, which runs it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Declaration:
    """What other parts of the program have to know of a command."""

    pipelines: "tuple[tuple[StageSpec, ...], ...]"
    """Pipelines that it alone runs."""
    planned: "Mapping[str, tuple[tuple[StageSpec, ...], ...]]" = field(default_factory=dict)
    """Purpose of `plan --for` → those of them that it plans, one per sort of model."""
    costs: str
    """Name of the mapping from its own stages to their costs."""
    finds: str = ""
    """Name of the function that returns the Product in a folder, or None; empty: no product."""


@cache
def declarations() -> tuple[Declaration, ...]:
    """Import the packages of the commands, and return what they declare, in the order of
    COMMANDS."""
    packages = dict.fromkeys(package for _, package in COMMANDS.values())
    modules = [import_module(name) for name in packages if name.startswith("flows.commands.")]
    return tuple(module.DECLARATION for module in modules if hasattr(module, "DECLARATION"))
