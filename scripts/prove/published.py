"""Tries folders of published models: whether the program makes of their configuration, names of
weights, tokenizer, processor and template what transformers alone makes of them, or refuses them
by name; and whether it plans them at full size by the sum of their shapes.

    python -m scripts.prove.published SNAPSHOTS [--only NAME] [--work DIR] [--inside] [--write]

`published.toml` lists the folders. SNAPSHOTS holds each under its name; nothing of them belongs to
this repository. One is made from its repository, commit and path:

    git clone https://github.com/OWNER/NAME clone && mkdir -p SNAPSHOTS/FOLDER
    git -C clone archive COMMIT:PATH | tar -x -C SNAPSHOTS/FOLDER

Files that the list names as lacking may be missing, and weights always are. Where a repository has
a pointer of Git LFS in place of such a file, remove it. For each folder:

    1. The configuration is made small (`small_config`), with random weights under the published
       names (`published_names`); all other files stay as they are.
    2. A picture and a video are captioned, or a picture embedded and labelled, by the command, and
       by transformers alone from the same frames (`comparing`).
    3. The published configuration with sparse files of full size is planned.

It prints the table and exits with 1 if a row is not what the list expects. `--write` puts the
table into docs/models.md.
"""

import argparse
import json
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.prove import comparing, published_names
from scripts.prove.comparing import Differs, compare_captions, compare_vectors, run_command
from scripts.prove.published_names import Kind
from scripts.prove.published_table import LIST, PAGE, Listed, PublishedList, Row, write_table
from scripts.prove.quantized_shapes import METHODS, is_quantized
from scripts.prove.small_config import small_config
from stages.models.hub.folder_files import POINTER
from stages.models.hub.quantized import settings_in
from tests.support.builders.plan_cases import INDEX, TYPES, Shape, write_sparse

PLAN_SHARE = 0.01
"""Share of the sum of the shapes by which a plan may differ."""
WEIGHTS = (".safetensors", ".bin", ".msgpack", ".h5", ".pth", ".pt", ".gguf", ".onnx")
KEPT_SUFFIXES = (".json", ".txt", ".jinja", ".model", ".py", ".tiktoken")
LARGEST = 1 << 26
"""Bytes of a file that is copied; larger ones are weights."""


def row_of(listed: Listed, snapshots: Path, work: Path, *, inside: bool = False) -> Row:
    """Try one folder; `inside`: the stages of captions run in this process."""
    folder = snapshots / listed.name
    if not folder.is_dir():
        return Row(listed=listed, result="not in SNAPSHOTS", good=False)
    lender = snapshots / listed.files_of if listed.files_of else None
    family = family_of(folder)
    if listed.expect.startswith("refused") and not listed.weights_decide:
        return refused_row(listed, folder, family, work)
    try:
        result = ""
        if listed.expect == "equal" or listed.weights_decide:
            result = compared_in_small(listed, folder, lender, work / "small", inside)
        plan, good = planned_at_full_size(folder, lender, work / "full")
    except Differs as error:
        why = str(error).replace(str(work / "small" / "model"), "the folder")
        good = listed.weights_decide and refusal_of(listed) in why
        result = f"{'refused' if good else 'differs'}: {why}"
        return Row(listed=listed, family=family, result=result, good=good)
    except Exception as error:  # the other rows are still to be tried
        traceback.print_exc()
        why = f"fails: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return Row(listed=listed, family=family, result=why, good=False)
    good = good and not listed.weights_decide
    return Row(
        listed=listed,
        family=family,
        compared_with="transformers" if result else "",
        result=result or "not compared: it lacks files of its prompt",
        plan=plan,
        good=good,
    )


def family_of(folder: Path) -> str:
    """Return the `model_type` of a folder; empty where no config.json that can be read states
    it."""
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    return str(values.get("model_type", "")) if isinstance(values, dict) else ""


def refusal_of(listed: Listed) -> str:
    """Return the words by which a folder must be refused."""
    return listed.expect.partition(":")[2].strip()


def refused_row(listed: Listed, folder: Path, family: str, work: Path) -> Row:
    """Try a folder that must be refused in one line, before anything is encoded."""
    words = refusal_of(listed)
    model = copy_folder(folder, work / "model", pointers=True)
    if not any(path.suffix in WEIGHTS for path in model.iterdir()):
        names = published_names.index_of(folder) or [f"layers.{n}.weight" for n in range(2000)]
        sizes = Shape(dtype="BF16", shape=(2000, 1000))
        write_sparse(model, dict.fromkeys(names, sizes))
    media = comparing.write_media(work / "media")
    done = run_command(
        "caption",
        *(str(media), "--model", str(model), "--out", str(work / "out")),
        *("--store", str(work / "store")),
    )
    line = comparing.last_line(done)
    encoded = any((work / "store").glob("**/features/**/*.pack"))
    good = done.returncode in (2, 5) and words in line and not encoded
    stated = line.removeprefix("penstock: ").replace(str(model), "the folder")
    result = f"refused: {stated.partition('. ')[0]}"
    return Row(listed=listed, family=family, result=result, good=good)


def copy_folder(folder: Path, to: Path, lender: Path | None = None, pointers: bool = False) -> Path:
    """Copy a folder without its weights, and the Python files of its sub-folders; what it lacks
    comes from the `lender`. Pointers of Git LFS are left out unless they are asked for."""
    to.mkdir(parents=True)
    for source in filter(None, (lender, folder)):
        for path in sorted({*source.iterdir(), *source.rglob("*.py")}):
            if not path.is_file() or path.name == INDEX:
                continue
            is_pointer = path.stat().st_size < 1024 and path.read_bytes().startswith(POINTER)
            wanted = path.suffix in KEPT_SUFFIXES and path.stat().st_size < LARGEST
            if pointers or (wanted and not is_pointer):
                copied = to / path.relative_to(source)
                copied.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, copied)
    return to


def compared_in_small(
    listed: Listed, folder: Path, lender: Path | None, work: Path, inside: bool
) -> str:
    """Compare a small model of a folder with transformers. Raises Differs."""
    import torch
    from transformers import AutoConfig

    from tests.support.tiny_families.parts import decisive

    model_folder = copy_folder(folder, work / "model", lender)
    published = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    small = small_config(published, AutoConfig.from_pretrained(folder))
    # By rule an older release's checkpoint gets prompts that transformers no longer writes.
    small["penstock_as_published"] = False
    (model_folder / "config.json").write_text(json.dumps(small), encoding="utf-8")
    kind = Kind.of(AutoConfig.from_pretrained(model_folder))
    torch.manual_seed(0)
    model = kind.build(dtype=torch.float32)
    if not kind.makes_vectors:
        model = decisive(model)
    index = published_names.index_of(folder)
    naming = published_names.write_weights(model, model_folder, index, kind.prefix)
    del model
    if kind.makes_vectors:
        result = compare_vectors(model_folder, work)
    else:
        result = compare_captions(model_folder, work, kind.cls, listed.turn, inside=inside)
    lacking = f"; the files lack {', '.join(naming.unpublished)}" if naming.unpublished else ""
    return result.text() + lacking


def planned_at_full_size(folder: Path, lender: Path | None, work: Path) -> tuple[str, bool]:
    """Plan a folder with sparse files, and return the planned bytes beside the sum of the shapes,
    and whether they agree. Raises Differs if the plan fails."""
    model = copy_folder(folder, work / "model", lender)
    total = write_sparse(model, full_shapes(folder))
    vectors = Kind.of(config_of(folder)).makes_vectors
    halves = planned_halves(model, work / "store", ("--for", "label") if vectors else ())
    planned = sum(int(half["stored_bytes"]) for half in halves.values())
    share = planned / total - 1
    same = "the sum" if abs(share) < 0.0005 else f"{share:+.1%} of the sum"
    return f"{planned / 1e9:.2f} GB, {same}", abs(share) <= PLAN_SHARE


def planned_halves(model: Path, store: Path, purpose: Sequence[str]) -> dict[str, Any]:
    """Return what the command plans for each half. Raises Differs if it fails."""
    done = run_command("plan", *purpose, "--model", str(model), "--json", "--store", str(store))
    if not done.stdout.startswith("{"):
        raise Differs(f"penstock plan ends with {done.returncode}: {comparing.last_line(done)}")
    halves: dict[str, Any] = json.loads(done.stdout)["halves"]
    return halves


def config_of(folder: Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder)


def full_shapes(folder: Path) -> dict[str, Shape]:
    """Return the tensors of the published files by name, by the class and the configuration."""
    import torch

    config = config_of(folder)
    kind = Kind.of(config)
    with torch.device("meta"):
        model = kind.build()
    published = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings = settings_in(published)
    index = published_names.index_of(folder)
    saved = published_names.saved_tensors(model, kind.prefix)
    naming = published_names.naming_of(model, saved, () if settings else index)
    linear = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Linear)}
    dtype = dtype_of(published)
    shapes: dict[str, Shape] = {}
    for old, new in naming.names.items():
        shape = tuple(saved[old].shape)
        if settings and id(saved[old]) in linear and is_quantized(new, settings, index):
            rows, columns = shape
            stored = METHODS[str(settings["quant_method"])](rows, columns, settings)
            stem = new.removesuffix("weight")
            shapes |= {stem + local: one for local, one in stored.items()}
            continue
        own = str(saved[old].dtype).removeprefix("torch.")
        named = dtype if saved[old].is_floating_point() else own
        shapes[new] = Shape(dtype=TYPES[named], shape=shape)
    return shapes


def dtype_of(published: Mapping[str, Any]) -> str:
    """Return the type of the published numbers, by the configuration or by a part of it."""
    parts = [part for part in published.values() if isinstance(part, dict)]
    stated = (part.get(name) for part in (published, *parts) for name in ("torch_dtype", "dtype"))
    return next((str(dtype) for dtype in stated if dtype), "float32")


def rows_of(folders: Sequence[Listed], snapshots: Path, work: Path, inside: bool) -> Iterator[Row]:
    """Yield the row of each folder as soon as it is known; only what differs keeps its files."""
    for listed in folders:
        place = work / listed.name
        shutil.rmtree(place, ignore_errors=True)
        row = row_of(listed, snapshots, place, inside=inside)
        print(row.line() + ("" if row.good else "  <- not as expected"), flush=True)
        if row.good:
            shutil.rmtree(place, ignore_errors=True)
        yield row


def main(arguments: Sequence[str] | None = None) -> int:
    """1 if a row is not what the list expects."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("snapshots", type=Path, help="folder with the published folders")
    parser.add_argument("--list", type=Path, default=LIST, help="the list [%(default)s]")
    parser.add_argument("--only", action="append", metavar="NAME", help="repeatable")
    parser.add_argument("--work", type=Path, help="where models are written [a temporary folder]")
    parser.add_argument("--inside", action="store_true", help="caption in this process: faster")
    parser.add_argument("--write", action="store_true", help="write the table into docs/models.md")
    options = parser.parse_args(arguments)

    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    listed = PublishedList.read(options.list)
    folders = [one for one in listed.folders if options.only is None or one.name in options.only]
    with tempfile.TemporaryDirectory() as temporary, comparing.warm_commands(Path(temporary)):
        work = options.work or Path(temporary) / "work"
        rows = [*rows_of(folders, options.snapshots, work, options.inside)]
    if options.write:
        write_table(listed, rows, PAGE)
    different = [row.listed.name for row in rows if not row.good]
    print(f"{len(rows) - len(different)} of {len(rows)} as expected")
    return bool(different)


if __name__ == "__main__":
    sys.exit(main())
