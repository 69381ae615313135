"""Limits the expansion of YAML aliases before a file is loaded. A few hundred bytes of nested
aliases could otherwise fill any memory.
"""

from typing import Any

MOST_NODES = 1_000_000
"""Texts, lists and mappings of a file in which every alias is written out."""


def check_aliases(text: str) -> None:
    """Raise ValueError for a text whose aliases stand for too much, or for what they are in, and
    yaml.YAMLError for one that is no YAML."""
    if "*" not in text:
        return
    import yaml

    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, 1))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_nodes.pop()
            _put(open_nodes, sizes, anchor, size)
        elif isinstance(event, yaml.ScalarEvent):
            _put(open_nodes, sizes, event.anchor, 1)
        elif isinstance(event, yaml.AliasEvent):
            _put(open_nodes, sizes, None, _stands_for(event, sizes, open_nodes))


def _stands_for(event: Any, sizes: dict[str, int], open_nodes: list[tuple[str | None, int]]) -> int:
    """Return the nodes that an alias stands for; one without an anchor is refused later."""
    if event.anchor in {anchor for anchor, _ in open_nodes}:
        raise ValueError(f"the alias *{event.anchor} stands within what it stands for")
    return sizes.get(event.anchor, 1)


def _put(
    open_nodes: list[tuple[str | None, int]],
    sizes: dict[str, int],
    anchor: str | None,
    size: int,
) -> None:
    """Add a finished node to the one that it is in."""
    if anchor is not None:
        sizes[anchor] = size
    outer, inside = open_nodes[-1]
    if inside + size > MOST_NODES:
        raise ValueError(f"its aliases stand for more than {MOST_NODES:,} texts")
    open_nodes[-1] = (outer, inside + size)
