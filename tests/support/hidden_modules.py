"""Modules that processes do not find, as if their packages were not installed."""

import tomllib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.pipeline import ROOT


def hiding(modules: Sequence[str]) -> str:
    """Return the code of a `sitecustomize` that hides these top-level modules. A finder put first
    could not: libraries ask `find_spec`, which must return nothing and raise nothing."""
    return f"""
from importlib.machinery import PathFinder
found = PathFinder.find_spec
def without(name, path=None, target=None):
    return None if name.partition(".")[0] in {tuple(modules)!r} else found(name, path, target)
PathFinder.find_spec = without
"""


def undeclared_modules() -> list[str]:
    """Return the installed modules of packages that a plain installation does not bring: neither
    pyproject.toml's dependencies nor what those require."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts, brought = list(project["dependencies"]), {"penstock"}
    while texts:
        requirement = Requirement(texts.pop())
        name = canonicalize_name(requirement.name)
        if name not in brought and (not requirement.marker or requirement.marker.evaluate()):
            brought.add(name)
            try:
                texts += requires(name) or ()
            except PackageNotFoundError:
                continue
    return [
        module
        for module, packages in packages_distributions().items()
        if not brought & {canonicalize_name(package) for package in packages}
    ]
