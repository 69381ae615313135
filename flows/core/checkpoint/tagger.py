"""Reads the declaration of a tagger, and checks that its graph and its tags fit it.

A declaration is TOML: what the graph takes and gives, where its tags stand, and from which
probability a picture gets a tag. Imports no model library.
"""

import math
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from artifacts.disk.json_records import typed
from artifacts.disk.json_shapes import ShapeError, parse
from artifacts.disk.paths import text_named
from artifacts.disk.regular_files import read_bytes, user_text
from artifacts.errors import UsageError
from artifacts.frame_fit import FrameFit
from artifacts.schema import values_of
from artifacts.texts.tables import read_csv
from artifacts.wording import counted
from stages.models.profile import ModelProfile, PartProfile, SamplingProfile
from stages.tag import FLOOR, PictureInput, TagOutput
from stages.tag.graph_header import TYPES, GraphHeader, GraphTensor, read_header

MAX_BYTES = 1 << 26
"""Largest declaration or tag file, in bytes; the largest known one has 15 MB."""
MAX_SIZE = 4096
"""Largest side of a picture that a graph takes, in pixels."""
HINT = "docs/taggers.md has the declarations of WD, CL, Camie and RAM++"
BYTES_OF = {"float32": 4, "float16": 2}
MOST_STORED = 1024
"""Numbers that are planned for each frame: some hundred tags are stored, each with its place."""
OWN, BEST = "own", "best"
"""Words in place of a threshold: each tag has its own, or the most probable one is given."""
ONE_CATEGORY = "tag"
"""Category of the tags of a file that has none."""
KAOMOJI = frozenset((
    "0_0", "(o)_(o)", "+_+", "+_-", "._.", "<o>_<o>", "<|>_<|>", "=_=", ">_<", "3_3",
    "6_9", ">_o", "@_@", "^_^", "o_o", "u_u", "x_x", "|_|", "||_||",
))  # fmt: skip
"""Faces among the tags of Danbooru, whose underscores are part of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TagFile:
    """Where the tags stand."""

    file: str
    format: Literal["csv", "json", "metadata", "lines"]
    """`csv` has the columns name and category, `json` place → tag and category, `metadata` is that
    of Camie, `lines` has a tag per line."""
    thresholds: str = ""
    """File with the threshold of each tag per line; empty: none."""
    underscores: Literal["blanks", "keep"] = "blanks"
    """What becomes of underscores, except those of kaomoji."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaggerFile:
    """The content of the file."""

    graph: str
    """The ONNX file; paths are relative to the declaration."""
    input: PictureInput
    output: TagOutput
    tags: TagFile
    thresholds: dict[str, float | str]
    """Category → lowest probability, `own` or `best`. Tags of other categories are never given."""
    categories: dict[str, str] = field(default_factory=dict)
    """Category as the tag file has it → its name here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tagger:
    """A declared tagger, whose graph and tags fit."""

    file: Path
    declared: TaggerFile
    header: GraphHeader
    tags: tuple[str, ...]
    """The tag of each number that the graph gives."""
    categories: tuple[str, ...]
    """The category of each."""
    own: tuple[float, ...]
    """The threshold of each, from a file; empty: it has none."""

    @property
    def graph(self) -> Path:
        return self.file.parent / self.declared.graph

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Return the names of the files with weights, below the folder of the graph."""
        return (self.graph.name, *self.header.data)

    @property
    def dtype(self) -> str:
        return TYPES[self.header.inputs[0].type]

    @property
    def key_fields(self) -> list[Any]:
        """Return what decides its probabilities, besides the files with weights."""
        return [values_of(self.declared.input), values_of(self.declared.output)]

    def rows(self, most: int) -> int:
        """Return the pictures per pass: those that the graph fixes, else `most`."""
        return self.header.inputs[0].shape[0] or most


def read_tagger(given: str) -> Tagger:
    """Read a declaration, its tags, and the header of its graph. Raises UsageError."""
    file = Path(given).expanduser().absolute()
    declared = _declaration(text_named(given, "tagger", MAX_BYTES, HINT), file)
    header = _header(file, declared)
    tags, categories = _tags(file, declared)
    own = _own_thresholds(file, declared.tags.thresholds, len(tags))
    tagger = Tagger(
        file=file, declared=declared, header=header, tags=tags, categories=categories, own=own
    )
    _check_graph(tagger)
    _check_thresholds(tagger)
    return tagger


def tagger_profile(tagger: Tagger) -> ModelProfile:
    """Return the profile of a tagger: a model that makes vectors of pictures. Raises OSError."""
    picture, folder = tagger.declared.input, tagger.graph.parent
    size = sum((folder / name).stat().st_size for name in tagger.weight_files)
    half = PartProfile(
        shards=tagger.weight_files,
        tensors=(),
        parameters=size // BYTES_OF[tagger.dtype],
        stored_bytes=size,
    )
    # Frames of videos are stored smaller. Stretched ones keep their short side, up to 2 to 1.
    edge = picture.size if picture.padding != "none" else 2 * picture.size
    return ModelProfile(
        folder=str(folder), class_name="", model_type="tagger", modalities=("image",),
        dtype=tagger.dtype, route="dual", parts={"vision": half}, sampling=SamplingProfile(),
        fit_video=FrameFit(long_edges=((1.0, edge),)),
        fit_image=FrameFit(long_edges=((1.0, picture.size),)),
        feature_width=min(len(tagger.tags), MOST_STORED), image_tokens=1, frame_tokens=1,
        image_pixel_bytes=12 * picture.size**2, frame_pixel_bytes=12 * picture.size**2,
    )  # fmt: skip


def _declaration(text: str, file: Path) -> TaggerFile:
    try:
        values = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{file} is not TOML: {error}", hint=HINT) from error
    _check_keys(TaggerFile, values, file)
    try:
        declared = typed(TaggerFile, values)
    except ShapeError as error:
        raise UsageError(f"{file}: {error}", hint=HINT) from error
    picture = declared.input
    checks = {
        "input.size": (0 < picture.size <= MAX_SIZE, f"a number of pixels up to {MAX_SIZE}"),
        "input.mean": (all(map(math.isfinite, picture.mean)), "three numbers"),
        "input.std": (
            all(0 < number < math.inf for number in picture.std),
            "three numbers above 0",
        ),
        "input.pad_colour": (
            all(0 <= number <= 255 for number in picture.pad_colour),
            "red, green and blue from 0 to 255",
        ),
        "output.index": (declared.output.index >= 0, "0 for the first output, 1 for the second"),
        "thresholds": (bool(declared.thresholds), "a threshold for a category of its tags"),
    }
    for place, (holds, hint) in checks.items():
        if not holds:
            raise UsageError(f"{file}: invalid {place}", hint=f"Give {hint}")
    return declared


def _check_keys(kind: type[Any], values: Mapping[str, Any], file: Path, table: str = "") -> None:
    """Raise UsageError for an unknown key, a missing one, or a word that is none of the choices."""
    names, hints = [one.name for one in fields(kind)], get_type_hints(kind)
    where = f"{file}: [{table}]" if table else f"{file}:"
    if unknown := [name for name in values if name not in names]:
        raise UsageError(f"{where} unknown key {unknown[0]}", hint=f"Known are {', '.join(names)}")
    for one in fields(kind):
        name, declared = one.name, hints[one.name]
        if name not in values:
            if one.default is MISSING and one.default_factory is MISSING:
                raise UsageError(f"{where} {name} is missing", hint=HINT)
        elif is_dataclass(declared) and isinstance(declared, type):
            if not isinstance(values[name], dict):
                raise UsageError(f"{file}: {name} is no table", hint=f"Write [{name}] above it")
            _check_keys(declared, values[name], file, name)
        elif get_origin(declared) is Literal and values[name] not in get_args(declared):
            choices = ", ".join(f'"{choice}"' for choice in get_args(declared))
            raise UsageError(
                f"{where} unknown {name} {values[name]!r}", hint=f"Choose from {choices}"
            )


def _header(file: Path, declared: TaggerFile) -> GraphHeader:
    graph = file.parent / declared.graph
    try:
        header = read_header(graph)
        for name in header.data:
            (graph.parent / name).stat()
    except OSError as error:
        text = f"{file}: {error.filename or graph} cannot be read: {error.strerror or error}"
        raise UsageError(text, hint="Download the graph, or correct `graph`") from error
    except ValueError as error:
        raise UsageError(f"{graph} cannot be read: {error}", hint="Download it again") from error
    return header


def _check_graph(tagger: Tagger) -> None:
    """Raise UsageError for a graph that is not as declared."""
    file, declared, header = tagger.file, tagger.declared, tagger.header
    picture, name = declared.input, tagger.graph.name
    if len(header.inputs) != 1:
        names = ", ".join(tensor.name for tensor in header.inputs) or "none"
        raise UsageError(
            f"{name} does not take one input, but {len(header.inputs)} ({names})",
            hint="Export the part that takes pictures alone",
        )
    (taken,) = header.inputs
    if taken.type not in TYPES:
        raise UsageError(
            f"{name} takes pictures in neither float32 nor float16 (type {taken.type} of ONNX)",
            hint="Export it with an input of float32",
        )
    wanted = (0, *_sides(picture.layout, picture.size))
    if len(taken.shape) != 4 or not _agree(taken.shape[1:], wanted[1:]):
        raise UsageError(
            f"{file} says {picture.layout} {picture.size}, but {name} takes {taken}",
            hint="Set layout and size in [input] as the graph has them",
        )
    if declared.output.index >= len(header.outputs):
        raise UsageError(
            f"{file} says output {declared.output.index}, but {name} has "
            f"{counted(len(header.outputs), 'output')}, counted from 0",
            hint="Set index in [output]",
        )
    _check_output(tagger, header.outputs[declared.output.index])


def _check_output(tagger: Tagger, given: GraphTensor) -> None:
    """Raise UsageError if an output has another length than the tag file. A graph need not state
    its length: then the first pass shows it."""
    if given.shape and not _agree(given.shape[1:], (len(tagger.tags),)):
        raise UsageError(
            f"{tagger.declared.tags.file} lists {len(tagger.tags):,} tags, but output "
            f"{tagger.declared.output.index} of {tagger.graph.name} has the shape {given}",
            hint="Name the tag file of this graph, or another index in [output]",
        )


def _sides(layout: str, size: int) -> tuple[int, int, int]:
    return (3, size, size) if layout == "NCHW" else (size, size, 3)


def _agree(stated: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(stated) == len(wanted) and all(
        one in (0, other) for one, other in zip(stated, wanted, strict=True)
    )


def _check_thresholds(tagger: Tagger) -> None:
    """Raise UsageError for a threshold that no tag can have, or that has no category."""
    file, there = tagger.file, Counter(tagger.categories)
    for category, threshold in tagger.declared.thresholds.items():
        if category not in there:
            names = ", ".join(f"{name} ({count:,})" for name, count in there.most_common(8))
            raise UsageError(
                f"{file}: no tag has the category {category} of [thresholds]",
                hint=f"Its tags have {names}; [categories] gives them other names",
            )
        if isinstance(threshold, str):
            if threshold not in (OWN, BEST):
                raise UsageError(
                    f"{file}: unknown threshold {threshold!r} of {category}",
                    hint=f'Give a number, "{BEST}" or "{OWN}"',
                )
            if threshold == OWN and not tagger.own:
                raise UsageError(
                    f'{file}: the tags of {category} have no thresholds of their "{OWN}"',
                    hint="Name their file: thresholds in [tags]",
                )
        elif not FLOOR <= threshold <= 1:
            raise UsageError(
                f"{file}: invalid threshold {threshold:g} of {category}",
                hint=f"Give a number from {FLOOR} to 1",
            )


def _tags(file: Path, declared: TaggerFile) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the tag and the category of each number of the graph. Raises UsageError."""
    path = file.parent / declared.tags.file
    text = _text_of(file, path, "file")
    try:
        pairs = READERS[declared.tags.format](text, path)
        if not all(isinstance(word, str) for pair in pairs for word in pair):
            raise TypeError("a tag or a category is no text")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"no {error}" if isinstance(error, KeyError) else f"{error}"
        raise UsageError(
            f'{path} is not of the format "{declared.tags.format}": {why}',
            hint="Set format in [tags]: csv, json, metadata or lines",
        ) from error
    if not pairs or not all(tag.strip() for tag, _ in pairs):
        raise UsageError(
            f"{path}: {'a tag is empty' if pairs else 'it has no tags'}", hint="Download it again"
        )
    blanks = declared.tags.underscores == "blanks"
    tags = (t.replace("_", " ") if blanks and t not in KAOMOJI else t for t, _ in pairs)
    return tuple(tags), tuple(declared.categories.get(of, of) for _, of in pairs)


def _own_thresholds(file: Path, name: str, count: int) -> tuple[float, ...]:
    if not name:
        return ()
    path = file.parent / name
    lines = _text_of(file, path, "thresholds").split()
    try:
        thresholds = tuple(map(float, lines))
    except ValueError as error:
        raise UsageError(f"{path}: {error}", hint="It has a number per line") from error
    wrong = [
        line for line, number in zip(lines, thresholds, strict=True) if not FLOOR <= number <= 1
    ]
    if wrong or len(thresholds) != count:
        why = f"invalid threshold {wrong[0]}" if wrong else f"{len(thresholds):,} thresholds"
        raise UsageError(
            f"{path}: {why}", hint=f"Give {count:,} numbers from {FLOOR} to 1, one per tag"
        )
    return thresholds


def _text_of(file: Path, path: Path, key: str) -> str:
    try:
        return user_text(read_bytes(path, MAX_BYTES), path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"{file}: {path} cannot be read: {reason}", hint=f"Correct {key} in [tags]"
        ) from error


Pairs = list[tuple[str, str]]
"""The tag and the category of each number of a graph."""


def _from_csv(text: str, path: Path) -> Pairs:
    _, rows = read_csv(text, f"{path}")
    return [(row["name"], row["category"]) for _, row in rows]


def _from_json(text: str, path: Path) -> Pairs:
    values = parse(text)
    return [(values[at]["tag"], values[at]["category"]) for at in _places(values)]


def _from_metadata(text: str, path: Path) -> Pairs:
    mapping = parse(text)["dataset_info"]["tag_mapping"]
    tags, categories = mapping["idx_to_tag"], mapping["tag_to_category"]
    return [(tags[at], categories[tags[at]]) for at in _places(tags)]


def _from_lines(text: str, path: Path) -> Pairs:
    lines = [line.strip() for line in text.strip().split("\n")]
    return [(line, ONE_CATEGORY) for line in lines]


def _places(values: Mapping[str, Any]) -> list[str]:
    """Return the keys 0, 1, 2 and so on. Raises KeyError if one is missing."""
    places = [str(at) for at in range(len(values))]
    if missing := [at for at in places if at not in values]:
        raise KeyError(missing[0])
    return places


READERS: Mapping[str, Callable[[str, Path], Pairs]] = {
    "csv": _from_csv,
    "json": _from_json,
    "metadata": _from_metadata,
    "lines": _from_lines,
}
"""Format of a tag file → its reader."""
