"""Writes the tables of docs/models.md and docs/memory.md, without network.

    python -m scripts.pages.tables models [FAMILIES]     `make models`; of FAMILIES the lines alone
    python -m scripts.pages.tables memory

docs/models.md says of every vision-language family that transformers has whether its halves say
what the whole model says, of every dual encoder, of ONNX graphs of them, which make what the towers
of every family in halves make, and what checkpoints are not read. docs/memory.md has what
fine-tuning Qwen2.5-VL-7B would take beside what others report.
"""

import argparse
import json
import multiprocessing
import resource
import signal
import sys
import tempfile
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from artifacts.schema import HalfName
from flows.commands.plan.training.architecture import Architecture, read_architecture
from flows.commands.plan.training.estimate import train_estimate
from flows.commands.plan.training.terms import Training
from flows.core.machine.budget import GPU_SHARE
from flows.core.options.commands import DEFAULT_MODEL
from flows.core.plan.view import TABLE
from scripts.prove.published_table import section as published_section
from stages.models.encoding import BATCHES
from stages.models.hub.checkpoint import NEAREST, Checkpoint
from stages.models.hub.quantized import READ, UNREAD
from stages.models.hub.unsupported import UNSUPPORTED
from tests.support.builders.card_models import card_models
from tests.support.builders.common import cells, heads, put
from tests.support.builders.plan_cases import BYTES, TYPES, make_folder, plan_case

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "models.md"
HEAD = """# Models

`--model` takes the id of any model on the hub whose family is [in the table below](#families), or a
folder. Take the largest one whose row names your card; without `--model`, `penstock caption` takes
{default}, which suits a first look.
`penstock plan VIDEOS/ --model ID` says whether it fits before a weight is downloaded.

{hub}
All of it is planned and not measured on these cards; [cards.md](cards.md) has every model that fits
each, with what limits it. Checkpoints of these in
[AWQ, GPTQ and FP8](precision.md#checkpoints-that-other-programs-quantized) are smaller downloads.
What the captions of one are worth was not measured.

## Families

This table lists the families of transformers {version} and whether each runs in halves.
`make models` writes it. For each family, a tiny model with random weights is saved to disk and
run three times:

1. as a whole, by its own `generate`;
2. in two stages that each load only their half, with the features in the form of the store;
3. in two stages by the lines of docs/python.md, with the features in a file of their own.

Every kind of image or video that the family's class or its processor accepts is tried. The results:

- *exact*: all tokens and logits are bit-identical, in 32 bit, greedy.
- *joint*: the family has no place where it could be split. The first stage keeps the processor's
  pixels, and the second loads the whole model. A run reports this.
- *refused*: a run ends with the reason.
- *fails*: the whole model fails too, in transformers itself.

*Route* is how features reach the language half. Penstock chooses it by the model's classes and not
by its name:

- *protocol*: `generate` takes `mm_encoder_outputs`.
- *replay*: `generate` calls the model's own `get_image_features`, which returns stored features.
- *splice*: the features are put into the embeddings.

*Slots* is tested with sequences whose prompts have different lengths, in fewer slots than there are
sequences. Each must generate the tokens that it generates alone, in 32 bit. Before that, an engine
check tests whether the logits of a sequence are bit-identical whatever runs beside it.
Otherwise the note says why; such a family is decoded in batches.

*Features* are the ways of encoding ([cache.md](cache.md#ways-of-encoding)) in which the bytes of a
row's features depend on no other row, tried with five images or videos in 32 bit and in bf16, in
one thread. `alone` holds where one input computed twice gives the same bytes.

*Sound* is tried with images or videos and [sound](sound.md) together, in three halves, one by one
and in a batch of two. It is *exact* where all tokens and logits are those of the whole model, or
where they differ by no more than the whole model does if it encodes the sounds of a batch one by
one.

**{exact} families exact, {joint} joint, {refused} refused.** {in_slots} of the exact ones decode in
slots.

| family | image | video | batch of 2 | mixed | sound | features | slots | route | vision half | \
language half | 30 s chunk in context | note |
|---|---|---|---|---|---|---|---|---|---|---|---|---|
"""
FOOT = """
The columns of the halves are shares of the tiny model's own bytes. Both together are more than
100 % if a half needs an extra module of the other. *One row at a time*: the features of a batch do
not state which row they belong to, so each is encoded and decoded by itself. *Also needs*: extra
modules of the other half that a half calls, which are loaded with it. `video` counts only if the
family's processor takes videos as such; otherwise the frames of a video are given as images.

*30 s chunk in context* takes a chunk of 30 s of 1080p and the context of the family's published
checkpoints. It says how many of the frames that a run takes by default
([frames.md](frames.md#which-frames)) fit beside the reserve for text. It is computed from what the
authors state, not from the tiny model. It is *unknown* if nobody stated a context, or if a frame's
tokens are not known.

Checkpoints in the form of the original LLaVA code (`LlavaLlamaForCausalLM`, `mm_vision_tower`) are
refused before any weights are fetched or read. The message has the id of the converted checkpoint
if it is known. Otherwise transformers would read the checkpoint as a model of its own, and invent
the weights of the vision encoder.

Penstock computes some families that transformers does not have: [natives.md](natives.md).
"""


def write_models(only: Sequence[str]) -> int:
    """Write docs/models.md, or the lines of some families; 1 if too few families run in halves as
    the whole."""
    import torch
    import transformers

    from tests.support.tiny_families import FAMILIES

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    names = {variant.split(":")[0] for variant in FAMILIES}
    if only:
        return renew(sorted({*only} & names), set(only) - names)
    rows = [family_row(name) for name in sorted(names, key=str.lower)]
    # Some families are another's class under a name of their own, and are built by that one's.
    rows += unbuilt_rows({row[key] for row in rows for key in ("family", "model_type")})
    rows.sort(key=lambda row: str(row["family"]).lower())
    counts = {kind: sum(row["result"] == kind for row in rows) for kind in RESULTS}
    in_slots = sum(row["slots"] == IN_SLOTS for row in rows)
    about = {"version": transformers.__version__, "default": DEFAULT_MODEL, "hub": hub_table()}
    head = HEAD.format(**about, in_slots=in_slots, **counts)
    dual, enough_dual = dual_section()
    graphs, enough_graphs = graphs_section()
    of_each = "".join(line(row) + "\n" for row in rows)
    tried = published_section(PAGE.read_text(), transformers.__version__)
    PAGE.write_text(head + of_each + FOOT + dual + unsupported_section() + graphs + tried)
    print(f"{PAGE}: {counts}, {in_slots} in slots")
    whole = not any(UNTRIED in (row["image"], row["video"]) for row in rows)
    alike = not counts["differs"] and not any(OTHERWISE in row["note"] for row in rows)
    enough = counts["exact"] >= LEAST and in_slots >= LEAST_IN_SLOTS
    enough = enough and enough_dual and enough_graphs
    return 0 if enough and alike and whole else 1


def hub_table() -> str:
    """Return public models by their ids, largest first: download, family, and the cards whose
    largest model it is (`scripts/pages/cards.py`)."""
    cards: dict[str, list[str]] = {}
    for row in json.loads(TABLE.read_text(encoding="utf-8"))["gpu"]:  # the largest card first
        card = round(row["bytes"] / GPU_SHARE / 1e9)
        for key, words in (("unquantized", ""), ("quantized", " with `--precision auto`")):
            if name := row.get(key):
                cards.setdefault(name, []).append(f"{card} GB{words}")
    lines = [heads("hub id | parameters | download | family | the largest on a card of")]
    for model in sorted(card_models(), key=lambda model: -model.parameters):
        size = model.parameters * BYTES[TYPES[model.dtype]] / 1e9
        use = (
            "labels and vectors"
            if model.processor in DUAL
            else ", ".join(cards.get(model.name, []))
        )
        count = f"{model.parameters / 1e9:.1f} B"
        lines.append(cells([model.name, count, f"{size:.1f} GB", model.processor, use]))
    return "\n".join(lines) + "\n"


DUAL = ("clip", "siglip")
"""Processors of models that make vectors."""


def renew(names: Sequence[str], unknown: set[str]) -> int:
    """Try these families again and replace their lines; 1 if one is not as the whole model, or has
    no tiny model. What the page counts is counted by a run over all families."""
    lines = PAGE.read_text().splitlines(keepends=True)
    good = not unknown
    for name in sorted(unknown):
        print(f"{name}: there is no tiny model of this family", file=sys.stderr)
    for name in names:
        row = family_row(name)
        good = good and row["result"] in ("exact", "joint") and row["sound"] in ("", "exact")
        at = next(n for n, text in enumerate(lines) if text.startswith(f"| {name} |"))
        lines[at] = line(row) + "\n"
    PAGE.write_text("".join(lines))
    return 0 if good else 1


RESULTS = ("exact", "joint", "refused", "fails", "differs")
LEAST = 75
"""Families that must be exact."""
LEAST_IN_SLOTS = 70
"""Families that must decode in slots."""
IN_SLOTS = "yes"
OTHERWISE = "in slots it differs"
"""What is noted where rows in slots say something else, and the trial did not find out."""
UNTRIED = "not tried"
"""What stands where a family takes a kind of picture that no tiny model shows it."""


def family_row(name: str) -> dict[str, Any]:
    """All variants of one family as one row."""
    from tests.support.tiny_families import FAMILIES
    from tests.support.tiny_families.verdict import MIXED, judge, kind_of, untried

    print(f"{name}…", file=sys.stderr, flush=True)
    found = {}
    for variant in FAMILIES:
        if variant.split(":")[0] == name:
            with tempfile.TemporaryDirectory() as folder:
                found[variant] = judge(variant, Path(folder))
    first = next(iter(found.values()))
    results = {verdict.result.split(":")[0] for verdict in found.values()}
    columns = {
        "image": [v.result for n, v in found.items() if kind_of(n, v.takes) == "image"],
        "video": [v.result for n, v in found.items() if kind_of(n, v.takes) == "video"],
        "batch": [v.result for n, v in found.items() if n.endswith(":b2")],
        "mixed": [v.result for n, v in found.items() if n.endswith(MIXED)],
        "sound": sounds_of(name),
    }
    seats = {seat_of(n, v) for n, v in found.items() if kind_of(n, v.takes)} - {""}
    why = {note_of_seat(seat) for seat in seats - {"slots"}}
    seat = "no" if why else IN_SLOTS
    judged = [n for n, v in found.items() if kind_of(n, v.takes) and v.result == "exact"]
    ways = set.intersection(*map(ways_of, judged)) if judged else set[str]()
    return {
        "features": ", ".join(sorted(ways)),
        "slots": "" if first.route == "joint" else seat,
        "family": name,
        "model_type": first.model_type,
        "result": max(results - {"fails"}, key=RESULTS.index),
        **{column: summed(results) for column, results in columns.items()},
        **dict.fromkeys(untried(name, first.takes), UNTRIED),
        "route": first.route,
        "loaded": first.loaded,
        "note": "; ".join(filter(None, [note_of(list(found.values())), *sorted(why)])),
    }


def sounds_of(name: str) -> list[str]:
    """The results of a family's variants with sound; none if it does not hear."""
    from tests.support.tiny_families.hearing import HEARING
    from tests.support.tiny_families.sound_verdict import judged_with_sound

    found = []
    for variant in HEARING:
        if variant.split(":")[0] == name:
            with tempfile.TemporaryDirectory() as folder:
                found.append(judged_with_sound(variant, Path(folder)))
    return found


def seat_of(variant: str, verdict: Any) -> str:
    """`slots` if a variant that runs in halves is decoded so, or why not."""
    from tests.support.tiny_families.in_slots import judged_in_slots

    return judged_in_slots(variant) if verdict.result == "exact" else ""


def ways_of(variant: str) -> set[str]:
    """The ways of encoding that hold for a variant in both precisions in which its half runs."""
    import torch

    from tests.support.tiny_families.in_slots import judged_in_passes

    found = {"alone", "fixed", BATCHES}
    for dtype in (torch.float32, torch.bfloat16):
        with tempfile.TemporaryDirectory() as folder:
            try:
                found &= {*judged_in_passes(variant, Path(folder), dtype)}
            except RuntimeError as error:  # a model that does not run in bf16 at all
                if dtype == torch.float32:
                    raise
                print(f"{variant} in bf16: {error}", file=sys.stderr)
    return found


def note_of_seat(why: str) -> str:
    return OTHERWISE if why == "differs" else f"not in slots: {why}"


def summed(results: list[str]) -> str:
    """One word for several variants: the worst, but for those on which the whole model fails."""
    words = {result.split(":")[0] for result in results}
    words = words - {"fails"} or words
    return max(words, key=RESULTS.index) if words else ""


def note_of(verdicts: Iterable[Any]) -> str:
    found = list(verdicts)
    pieces = sorted({piece for verdict in found for piece in verdict.extra_modules})
    notes = [f"also needs `{'`, `'.join(pieces)}`"] if pieces else []
    if not all(verdict.by_row for verdict in found):
        notes.append("one row at a time")
    failed = {v.result.partition(": ")[2] for v in found if v.result.startswith("fails")}
    notes += [f"the whole model fails: {why}" for why in sorted(failed)]
    if found[0].route == "joint":
        notes.append(found[0].why)
    return "; ".join(notes)


def unbuilt_rows(known: set[str]) -> list[dict[str, Any]]:
    """Families of which there is no tiny model: their route, from the classes alone."""
    import torch
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    from artifacts.errors import PenstockError
    from stages.models.halves.split_route import choose_route, refuse

    rows = []
    mapping: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    for config, cls in mapping.items():
        if config.model_type in known:
            continue
        row = {"family": config.model_type, "model_type": config.model_type, "loaded": (0, 0, 0)}
        try:
            refuse(cls)
            with torch.device("meta"):
                choice = choose_route(cls(config()))
            row |= {"result": choice.route, "route": choice.route, "note": choice.why}
        except PenstockError as error:
            row |= {"result": "refused", "route": "", "note": error.message}
        words = dict.fromkeys(("video", "batch", "mixed", "sound", "features", "slots"), "")
        rows.append({**row, **words, "image": row["result"]})
    return rows


def line(row: dict[str, Any]) -> str:
    vision, language, whole = row["loaded"]
    shares = [f"{100 * half / whole:.0f} %" if whole else "" for half in (vision, language)]
    columns = ("image", "video", "batch", "mixed", "sound", "features", "slots", "route")
    words = [row[column] for column in columns]
    return cells([row["family"], *words, *shares, in_context(row["family"]), row["note"]])


UNKNOWN = "unknown"
SECONDS = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameFacts:
    """A frame of 1080p to the published checkpoints of a family, and how many there are."""

    tokens: int
    """Tokens of a frame, with the words about it."""
    fps: float = 1.0
    """Frames a second that a run takes by default: as the processor states, else one."""
    frames: int = 0
    """Frames of a chunk that it takes instead; 0: by `fps`."""
    source: str
    """Where these numbers stand."""

    @property
    def wanted(self) -> int:
        """Return the frames of a chunk that a run takes by default."""
        return self.frames or round(SECONDS * self.fps)


_QWEN2 = FrameFacts(
    tokens=360, source="30 frames of 560x1008: qwen-vl-utils' 768 tokens a pair at the most"
)
_QWEN3 = FrameFacts(
    tokens=195, fps=2.0, source="60 frames are 11,700 within 25,165,824 pixels a video"
)
FRAMES: Mapping[str, FrameFacts] = {
    "ernie4_5_vl_moe": FrameFacts(
        tokens=598, fps=2.0, source="1,196 tokens a pair: Ernie4_5_VLMoeVideoProcessor.size"
    ),
    "glm4v": FrameFacts(
        tokens=1875, frames=16, source="30,000 tokens a video: Glm4vVideoProcessor.size, num_frames"
    ),
    "llava": FrameFacts(tokens=577, source="24 x 24 patches of 14 in 336 pixels, and a line's end"),
    "llava_next_video": FrameFacts(tokens=144, source="24 x 24 patches, pooled by 2 x 2"),
    "llava_onevision": FrameFacts(tokens=196, source="27 x 27 patches, pooled to 14 x 14"),
    "qwen2_5_vl": _QWEN2,
    "qwen2_vl": _QWEN2,
    "qwen3_5": _QWEN3,
    "qwen3_5_moe": _QWEN3,
    "qwen3_vl": _QWEN3,
    "qwen3_vl_moe": _QWEN3,
    "smolvlm": FrameFacts(tokens=93, source="81 tokens of SmolVLM2-2.2B and its time in words"),
    "video_llava": FrameFacts(tokens=257, source="16 x 16 patches in 224 pixels, and a class"),
}
"""Family → what is known; families whose context is not known need no entry."""


def in_context(family: str) -> str:
    """Return how many frames of a chunk the context holds of those that a run takes by default,
    such as `5 of 30`."""
    from flows.core.checkpoint.frame_room import tokens_for_frames
    from stages.models.published import facts_of

    known, context = FRAMES.get(family), facts_of(family).context
    if known is None or not context:
        return UNKNOWN
    fitting = tokens_for_frames(context) // known.tokens
    return f"{min(fitting, known.wanted)} of {known.wanted}"


UNSUPPORTED_HEAD = """
## Classes that need another package

`pip install penstock` brings what all other classes need. A run or a plan with one of these ends
before it starts, with the command that installs the package.

| family | package | what needs it |
|---|---|---|
| fast_vlm, gemma3n, perception_lm, and any with a tower of timm | timm | the vision tower |
| kimi_k25 | tiktoken | the tokenizer, if it is tiktoken.model without tokenizer.json |
| minicpm_ocr | opencv-python | the image processor, if its `small_image_upsize` is `adaptive` |
| udop | pytesseract, and the program tesseract | the image processor, which reads text of pages |

## Not read as published

Each of these checkpoints is refused in one line, with the reason and a form that works.

| checkpoint | why | what works |
|---|---|---|
"""
QUANTIZED = (
    (
        f"quantized checkpoints that are stored {'; '.join(UNREAD)}",
        "their layers are in none of the layouts that are read",
        f"the original checkpoint with `--precision nf4`, or the model in one of: {READ}",
    ),
    (
        "a mixture whose experts are quantized (AWQ, FP8 and others)",
        "experts are read in 16 bit only",
        "the original, or a model without experts",
    ),
    (
        "one whose config.json claims quantization over plain weights",
        "its weights are not quantized",
        "the same without `quantization_config` in its config.json",
    ),
)


def unsupported_section() -> str:
    """Return the part of the page."""
    rows = [*QUANTIZED, *((form.name, form.reason, form.alternative) for form in UNSUPPORTED)]
    nearest = ", ".join(f"`{model}`" for model in dict.fromkeys(NEAREST.values()))
    why = "it is in the form of the original LLaVA code, and was never converted"
    rows.append(("LLaVA-Video", why, f"{nearest}, of the same makers"))
    return UNSUPPORTED_HEAD + "".join(f"{cells(row)}\n" for row in rows)


GRAPHS_HEAD = """
## Graphs

This table lists what [`penstock export --to onnx`](graphs.md) can make. For each family, the vision
half of a tiny model is loaded. Its encoders are found by running it, and their graphs are made and
tried as an export does. An export tries two images, one and four. If an encoder takes all images as
one sequence, it also tries images of different sizes, whose windows have unequal lengths. Videos
are tried in the same way. Then come inputs that the export did not see: other images, three of
them, other sizes.

- *agrees*: features differ by less than 1/1000 of the largest number in 32 bit, most by less than
  1/100000.
- *refused*: the export, or a graph that gets such an input, ends with the reason. torch takes it.

No graph may differ silently.

**{agreeing} of {families} families agree, and {halves} of {both} halves of dual encoders.**

| family | encoders | graphs | image | video | batch of 4 | mixed | note |
|---|---|---|---|---|---|---|---|
"""
LEAST_AGREEING = 60
"""Families that must agree."""
GRAPH_SECONDS = 240
"""Processor time that the graphs of one may take."""
NOTE_LETTERS = 240
"""Maximum length of a reason in letters."""
HALVES: dict[str, HalfName] = {"vision half": "vision", "text half": "language"}


def graphs_section() -> tuple[str, bool]:
    """The text of the part, and whether enough families agree and none is silently otherwise."""
    from tests.support.dual_encoders import names
    from tests.support.tiny_families import FAMILIES
    from tests.support.tiny_families.verdict import UNCUT

    judged("clip, vision half")  # loads all libraries once, so that no family's process has to
    families = sorted({variant.partition(":")[0] for variant in FAMILIES} - UNCUT, key=str.lower)
    duals = [f"{name}, {half}" for name in sorted(names()) for half in HALVES]
    of_families, of_duals = (list(map(judged_apart, each)) for each in (families, duals))
    agreeing, halves = (
        sum(r["result"] == "agrees" for r in rows) for rows in (of_families, of_duals)
    )
    head = GRAPHS_HEAD.format(
        agreeing=agreeing, families=len(families), halves=halves, both=len(duals)
    )
    rows = [*of_families, *of_duals]
    enough = agreeing >= LEAST_AGREEING and not any(
        row["result"].startswith("differs") for row in rows
    )
    return head + "".join(graph_line(row) + "\n" for row in rows), enough


def judged_apart(name: str) -> dict[str, Any]:
    """What came of one family, or of a half of a dual encoder, in a process of its own: an exporter
    may never end. It begins where this one is, which has all libraries loaded and warm."""
    print(f"{name}…", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "row.json"
        child = multiprocessing.get_context("fork").Process(target=judge_into, args=(name, file))
        child.start()
        child.join()
        if file.exists():
            row: dict[str, Any] = json.loads(file.read_text())
            return row
    if child.exitcode != -signal.SIGXCPU:
        raise SystemExit(f"{name} could not be judged: exit status {child.exitcode}")
    return {"name": name, "result": f"refused: no graph within {GRAPH_SECONDS} s of processor time"}


def judge_into(name: str, file: Path) -> None:
    """Judge within the time, and write what came of it to a file."""
    resource.setrlimit(resource.RLIMIT_CPU, (GRAPH_SECONDS, GRAPH_SECONDS + 1))
    file.write_text(json.dumps(judged(name)))


def judged(name: str) -> dict[str, Any]:
    """What came of a family, or of a half of a dual encoder, as a row."""
    from tests.support.graph_verdict import COLUMNS, judge_dual_graphs, judge_graphs

    dual, _, half = name.partition(", ")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        made = judge_dual_graphs(dual, HALVES[half], path) if half else judge_graphs(name, path)
    columns = {column: made.column(column) for column in COLUMNS}
    facts = {"towers": list(made.towers), "graphs": made.graphs}
    return {"name": name, "result": made.result, **facts, **columns}


def graph_line(row: dict[str, Any]) -> str:
    """A row of the table."""
    words_of_it, _, why = row["result"].partition(": ")
    why = textwrap.shorten(why, NOTE_LETTERS, placeholder=" …")
    columns = [row.get(column, "") for column in ("image", "video", "batch 4", "mixed")]
    if not any(columns):
        columns[0] = words_of_it
    towers = ", ".join(f"`{path}`" for path in row.get("towers", ()))
    texts = [row["name"], towers, row.get("graphs") or "", *columns, why]
    return cells(str(text).replace("|", "\\|") for text in texts)


DUAL_HEAD = """
## Dual encoders

[`penstock embed`](embed.md) takes models that turn an image and a text into comparable vectors.
They are the classes that transformers has for zero-shot image classification. A tiny model of each
is saved, its halves are loaded alone, and the vectors of images go through the form of the store.
The logits are those of the model's own `forward` over stored vectors. *exact*: bit-identical to the
whole model, in 32 bit, and in bf16 where that column says so.

**{exact} of {all} classes exact in 32 bit, {short} of them in bf16; {refused} refused.**

| type | class | images | texts | logits | in bf16 | vision half | text half | note |
|---|---|---|---|---|---|---|---|---|
"""
LEAST_DUAL = 10
"""Classes that must be exact."""


def dual_section() -> tuple[str, bool]:
    """The text of the part, and whether enough classes are exact."""
    import torch

    from tests.support.dual_encoders import judge, names

    def judged(name: str, dtype: torch.dtype) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            return judge(name, Path(folder), dtype)

    pairs = [(judged(n, torch.float32), judged(n, torch.bfloat16)) for n in sorted(names())]
    exact = sum(whole.exact for whole, _ in pairs)
    head = DUAL_HEAD.format(
        exact=exact,
        all=len(pairs),
        short=sum(short.exact for _, short in pairs),
        refused=sum(bool(whole.refused) for whole, _ in pairs),
    )
    return head + "".join(dual_line(*pair) + "\n" for pair in pairs), exact >= LEAST_DUAL


def dual_line(whole: Any, short: Any) -> str:
    """A row of the table."""
    name = [whole.name, whole.class_name]
    if whole.refused:
        return cells([*name, "refused", *[""] * 5, whole.refused])
    shares = [f"{100 * share:.0f} %" for share in whole.shares]
    notes = [f"in bf16 {of}: the whole model {text}" for of, text in short.results.items()
             if text.startswith("fails")]  # fmt: skip
    kinds = {text.partition(":")[0] for text in short.results.values()}
    each = ", ".join(f"{of} {text.partition(':')[0]}" for of, text in short.results.items())
    in_short = "exact" if kinds == {"exact"} else each
    return cells([*name, *whole.results.values(), in_short, *shares, "; ".join(notes)])


GIB = 1 << 30
MEMORY_PAGE = DOCS / "memory.md"
TUNING_MARK = "fine-tuning"
SWIFT = "ms-swift `examples/train/"


class Tuning(NamedTuple):
    """A model that is fine-tuned, and what is reported of it by whom."""

    model: str
    training: Training
    reported: str = ""
    source: str = ""


TEXT = "Qwen2.5-7B (text)"
ALL = "Qwen2.5-VL-7B"
FULL: dict[str, Any] = {"method": "full", "checkpointing": True}
LORA: dict[str, Any] = {**FULL, "method": "lora"}
QLORA: dict[str, Any] = {**FULL, "method": "qlora"}
TUNINGS = (
    Tuning(TEXT, Training(**FULL, optimizer="bf16"), "76 GiB", f"{SWIFT}full/train.sh`"),
    Tuning(ALL, Training(**FULL, optimizer="bf16")),
    Tuning(ALL, Training(**FULL)),
    Tuning(ALL, Training(method="full")),
    Tuning(ALL, Training(**FULL, zero=3, gpus=4)),
    Tuning(TEXT, Training(**LORA), "22 GB", f"{SWIFT}lora_sft.sh`"),
    Tuning(ALL, Training(**LORA), "22 GiB", f"{SWIFT}multimodal/caption.sh`"),
    Tuning(TEXT, Training(**QLORA), "10 GB", f"{SWIFT}qlora/bnb/train.sh`"),
    Tuning(ALL, Training(**QLORA)),
    Tuning(
        ALL, Training(**QLORA, length=512, frames=0), "6 GB", "LLaMA-Factory's table, of 7B models"
    ),
)


def write_memory() -> int:
    """Put the table of fine-tuning into docs/memory.md."""
    page = put(MEMORY_PAGE.read_text(), TUNING_MARK, tuning_table())
    MEMORY_PAGE.write_text(page)
    return 0


def tuning_table() -> str:
    """Return what fine-tuning takes by the plan, beside what is reported."""
    with tempfile.TemporaryDirectory() as root:
        case = replace(plan_case("qwen2.5-vl-7b-instruct"), processor=None)
        folder = make_folder(case, Path(root))
        architecture = read_architecture(Checkpoint(name=case.name, folder=folder))
        return "\n".join([*tuning_lines(architecture), ""])


def tuning_lines(architecture: Architecture) -> Iterator[str]:
    yield heads(
        "model | how | weights | gradients | optimizer | activations | logits or layer"
        " | peak per GPU | reported | by"
    )
    for tuning in TUNINGS:
        estimate = train_estimate(
            alone(architecture) if tuning.model == TEXT else architecture, tuning.training
        )

        def part(*names: str, of: Any = estimate) -> str:
            return gib(sum(term.bytes for term in of.terms if term.part in names))

        row = [
            tuning.model,
            how(tuning.training),
            *(part(name) for name in ("weights", "gradients", "optimizer", "activations")),
            part("logits", "layer"),
            gib(estimate.peak_bytes),
            tuning.reported,
            tuning.source,
        ]
        yield cells(row)


def how(training: Training) -> str:
    words: list[str] = [training.method]
    if training.method == "full":
        words.append(f"AdamW {training.optimizer}")
    if training.zero:
        words.append(f"ZeRO {training.zero} on {training.gpus}")
    words.append(f"{training.length:,} tokens")
    words.append("recomputed" if training.checkpointing else "kept")
    return ", ".join(words)


def alone(architecture: Architecture) -> Architecture:
    """The language half as a model of its own."""
    transformers = tuple(each for each in architecture.transformers if each.kind == "text")
    return replace(architecture, transformers=transformers, parameters=architecture.text_parameters)


def gib(count: float) -> str:
    return f"{count / GIB:.2f}" if count else ""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("page", choices=("models", "memory"))
    parser.add_argument("families", nargs="*", help="of models: try only these again [all]")
    options = parser.parse_args()
    return write_models(options.families) if options.page == "models" else write_memory()


if __name__ == "__main__":
    sys.exit(main())
