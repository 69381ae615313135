"""The demo's language: its words, its sentences, and the score of a caption against another."""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

COLOURS: Final = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SHAPES: Final = ("circle", "square", "triangle", "star", "cross", "ring")
SIZES: Final = ("small", "large")
DIRECTIONS: Final = ("left", "right", "up", "down")
SPEEDS: Final = ("slowly", "quickly")
BACKGROUNDS: Final = ("dark", "light", "gradient", "noisy", "striped")
MOVES: Final = tuple(f"moves {way} {speed}" for way in DIRECTIONS for speed in SPEEDS)
ACTIONS: Final = (*MOVES, "stays still", "appears", "disappears")
ATTRIBUTES: Final = (
    "size",
    "colour",
    "shape",
    "action",
    "direction",
    "speed",
    "structure",
    "background",
)

NEVER_TRAINED: Final = frozenset(
    {
        ("red", "star"),
        ("red", "square"),
        ("orange", "triangle"),
        ("yellow", "square"),
        ("green", "ring"),
        ("cyan", "cross"),
        ("blue", "triangle"),
        ("blue", "ring"),
        ("purple", "cross"),
        ("pink", "circle"),
    }
)
"""Ten of the 48 colour and shape pairs, kept from training; others train each colour and shape."""


class Structure(StrEnum):
    """How the things of a clip share its time."""

    ONE = "one"
    """One thing does one thing."""
    THEN = "then"
    """One thing does one thing, then another."""
    WHILE = "while"
    """Two things act at once; the one that starts further left is named first."""
    RELAY = "relay"
    """One thing acts, then a second one does."""
    STILL = "still"
    """A single image of one or two things, named from left to right."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Thing:
    """One coloured shape."""

    size: str
    """One of `SIZES`."""
    colour: str
    """One of `COLOURS`."""
    shape: str
    """One of `SHAPES`."""

    @property
    def is_trained(self) -> bool:
        """Return whether this colour and shape pair may occur in training clips."""
        return (self.colour, self.shape) not in NEVER_TRAINED

    def __str__(self) -> str:
        return f"a {self.size} {self.colour} {self.shape}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sentence:
    """The content of one clip or image, in the order of its caption."""

    structure: Structure
    """How the things share the time."""
    things: tuple[Thing, ...]
    """One or two things."""
    actions: tuple[str, ...]
    """Actions of `ACTIONS`: one, two, or none for an image."""
    background: str
    """One of `BACKGROUNDS`."""

    @property
    def is_trained(self) -> bool:
        """Return whether all its things may occur in training clips."""
        return all(thing.is_trained for thing in self.things)

    def __str__(self) -> str:
        first, last = str(self.things[0]), str(self.things[-1])
        template = {
            Structure.ONE: "{first} {a}",
            Structure.THEN: "{first} {a}, then {b}",
            Structure.WHILE: "{first} {a} while {last} {b}",
            Structure.RELAY: "{first} {a}, then {last} {b}",
            Structure.STILL: "{first} and {last}" if len(self.things) > 1 else "{first}",
        }[self.structure]
        a, b = (*self.actions, "", "")[:2]
        text = (
            template.format(first=first, last=last, a=a, b=b)
            + f" on a {self.background} background."
        )
        return text[0].upper() + text[1:]


_THING = rf"a ({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
_ACTION = rf"({'|'.join(ACTIONS)})"
_GROUND = rf" on a ({'|'.join(BACKGROUNDS)}) background\.$"
_CLIP = re.compile(rf"^{_THING} {_ACTION}(?:(, then| while) (?:{_THING} )?{_ACTION})?{_GROUND}")
_STILL = re.compile(rf"^{_THING}(?: and {_THING})?{_GROUND}")


def _thing(parts: tuple[str, ...]) -> Thing:
    size, colour, shape = parts
    return Thing(size=size, colour=colour, shape=shape)


def parse(text: str) -> Sentence | None:
    """Return the sentence that a caption expresses, or None if it does not follow the grammar."""
    plain = text.strip()
    plain = plain[:1].lower() + plain[1:]
    if match := _STILL.match(plain):
        parts = match.groups()
        things = (_thing(parts[:3]), *([_thing(parts[3:6])] if parts[3] else []))
        return Sentence(structure=Structure.STILL, things=things, actions=(), background=parts[6])
    if not (match := _CLIP.match(plain)):
        return None
    parts = match.groups()
    second = bool(parts[5])
    structure = {
        (None, False): Structure.ONE,
        (", then", False): Structure.THEN,
        (", then", True): Structure.RELAY,
        (" while", True): Structure.WHILE,
    }.get((parts[4], second))
    if structure is None:
        return None
    return Sentence(
        structure=structure,
        things=(_thing(parts[:3]), *([_thing(parts[5:8])] if second else [])),
        actions=(parts[3], *([parts[8]] if parts[8] else [])),
        background=parts[9],
    )


def score(predicted: str, reference: str) -> dict[str, list[bool]]:
    """Return the hits for `exact` and for each attribute of the reference, which must follow the
    grammar."""
    truth, guess = parse(reference), parse(predicted)
    if truth is None:
        raise ValueError(f"reference={reference!r} does not follow the demo's grammar")
    hits: dict[str, list[bool]] = {name: [] for name in ("exact", *ATTRIBUTES)}
    hits["exact"].append(predicted.strip() == reference.strip())
    hits["structure"].append(guess is not None and guess.structure == truth.structure)
    hits["background"].append(guess is not None and guess.background == truth.background)
    for index, thing in enumerate(truth.things):
        guessed = guess.things[index] if guess and index < len(guess.things) else None
        for name in ("size", "colour", "shape"):
            hits[name].append(
                guessed is not None and getattr(guessed, name) == getattr(thing, name)
            )
    for index, action in enumerate(truth.actions):
        guessed_action = guess.actions[index] if guess and index < len(guess.actions) else ""
        verb, *rest = action.split()
        guessed_verb, *guessed_rest = (*guessed_action.split(), "", "", "")[:3]
        hits["action"].append(guessed_verb == verb)
        if verb == "moves":
            hits["direction"].append(guessed_verb == verb and guessed_rest[0] == rest[0])
            hits["speed"].append(guessed_verb == verb and guessed_rest[1] == rest[1])
    return hits
