"""Limits the expansion of YAML aliases before a file is loaded. A few hundred bytes of nested
aliases could otherwise fill any memory."""

from typing import Any

MAX_NODES = 1_000_000
"""Largest number of texts, lists and mappings in a file with all aliases expanded."""


def check_aliases(text: str) -> None:
    """Raise ValueError if aliases expand too much or contain themselves, and yaml.YAMLError if the
    text is no YAML."""
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
            _add_node(open_nodes, sizes, anchor, size)
        elif isinstance(event, yaml.ScalarEvent):
            _add_node(open_nodes, sizes, event.anchor, 1)
        elif isinstance(event, yaml.AliasEvent):
            _add_node(open_nodes, sizes, None, _alias_size(event, sizes, open_nodes))


def _alias_size(event: Any, sizes: dict[str, int], open_nodes: list[tuple[str | None, int]]) -> int:
    """Return the number of nodes that an alias expands to. An alias without an anchor is rejected
    later."""
    if event.anchor in {anchor for anchor, _ in open_nodes}:
        raise ValueError(f"the alias *{event.anchor} contains itself")
    return sizes.get(event.anchor, 1)


def _add_node(
    open_nodes: list[tuple[str | None, int]],
    sizes: dict[str, int],
    anchor: str | None,
    size: int,
) -> None:
    """Add a finished node to its parent."""
    if anchor is not None:
        sizes[anchor] = size
    outer, inside = open_nodes[-1]
    if inside + size > MAX_NODES:
        raise ValueError(f"its aliases expand to more than {MAX_NODES:,} nodes")
    open_nodes[-1] = (outer, inside + size)
