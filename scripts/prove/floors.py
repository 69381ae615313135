"""Prints the rooms, floors, arrows and circles of packages: `python -m scripts.prove.floors flows`.

A room is a module or a package directly inside a package. An arrow leads from a room to another one
that it imports, by whichever of its modules. Floors are the rooms of the longest way along arrows;
rooms of a circle count as one. Without names, all packages of the program are printed.
"""

import argparse
import graphlib
import sys
from collections.abc import Mapping

import grimp

PACKAGES = ("penstock", "flows", "stages", "artifacts", "penstock_demo")
Arrows = Mapping[str, set[str]]
"""Room → rooms that it imports."""


def arrows_in(graph: grimp.ImportGraph, package: str) -> dict[str, set[str]]:
    """Return the arrows between the rooms of a package."""
    room_of = {
        module: room
        for room in graph.find_children(package)
        for module in (room, *graph.find_descendants(room))
    }
    arrows: dict[str, set[str]] = {room: set() for room in room_of.values()}
    for module, room in room_of.items():
        imported = graph.find_modules_directly_imported_by(module)
        arrows[room] |= {room_of[other] for other in imported if other in room_of} - {room}
    return arrows


def circles_in(arrows: Arrows) -> list[set[str]]:
    """Return the sets of rooms that reach each other."""
    reached = {room: _reached(arrows, room) for room in arrows}
    circles = {frozenset(b for b in reached[a] if a in reached[b]) for a in arrows}
    return sorted((set(circle) for circle in circles if len(circle) > 1), key=min)


def _reached(arrows: Arrows, start: str) -> set[str]:
    reached, waiting = set[str](), [start]
    while waiting:
        waiting += (new := arrows[waiting.pop()] - reached)
        reached |= new
    return reached


def floors_of(arrows: Arrows, circles: list[set[str]]) -> int:
    """Return the number of rooms on the longest way."""
    name = {room: min(circle) for circle in circles for room in circle}
    joined: dict[str, set[str]] = {}
    for room, others in arrows.items():
        own = name.get(room, room)
        joined.setdefault(own, set()).update({name.get(o, o) for o in others} - {own})
    floor: dict[str, int] = {}
    for room in graphlib.TopologicalSorter(joined).static_order():
        floor[room] = 1 + max((floor[other] for other in joined[room]), default=0)
    return max(floor.values(), default=0)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("packages", nargs="*", metavar="PACKAGE", help="as flows.core")
    given = parser.parse_args()
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    is_circular = False
    for package in given.packages or sorted(p for p in graph.modules if graph.find_children(p)):
        arrows = arrows_in(graph, package)
        circles = circles_in(arrows)
        counts = f"{len(arrows)} rooms, {floors_of(arrows, circles)} floors"
        print(f"{package}: {counts}, {sum(map(len, arrows.values()))} arrows")
        for circle in circles:
            is_circular = True
            print(f"  circle: {' '.join(sorted(circle))}")
    return int(is_circular)


if __name__ == "__main__":
    sys.exit(main())
