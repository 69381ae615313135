"""Records what the installed transformers makes of a few fixed inputs, for each family with videos:
the ids of a prompt with a video, the sizes of what the processor gives a model, the counts of each
special token, and the positions of text and video where the model counts them in several axes.
tests/data/published_recorded.json holds the record; a test compares the installed release with it
and fails with the family, what differs, both values and both releases.

`python -m scripts.prove.published_check` prints what differs from the record and exits with 1
if anything does; `--write` records the installed release anew. Write it only after
docs/published.md says of each difference which way the published weights take. It needs no network.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

RECORDED = ROOT / "tests" / "data" / "published_recorded.json"
PROMPT = "Describe."
SHAPES = ((4, 48, 64), (6, 160, 90))
"""Frames, height and width of the videos that processors are given."""
WHOLE = ("qwen2_vl", "qwen2_5_vl", "ernie4_5_vl_moe", "qwen2_5_omni_thinker")
"""Families whose prompts hold the tokens of all frames of a video in one run."""
BEFORE, BEHIND = 15, 10
"""Tokens of text before and behind a video whose positions are recorded."""
GRIDS = {True: (30, 26, 46), False: (4, 4, 6)}
"""Steps, rows and columns of that video, for one run of tokens, and for one run a step."""
Record = dict[str, dict[str, Any]]


def processors() -> Mapping[str, Callable[[], Any]]:
    """Return family → makes its tiny processor, for those that take videos."""
    from tests.support import families
    from tests.support.processors import KINDS

    saved = ("qwen2_5_vl", "qwen3_vl", "llava_onevision", "smolvlm")
    documented = {name: kind.build for name, kind in KINDS.items() if kind.video == "videos"}
    return documented | {name: _saved(families.checkpoint, name) for name in saved}


def _saved(checkpoint: Callable[[str], Path], family: str) -> Callable[[], Any]:
    from stages.models.processors.loading import load_processor

    return lambda: load_processor(checkpoint(family))


def of_processor(processor: Any) -> dict[str, Any]:
    """Return what a processor makes of each video of SHAPES."""
    from tests.support.clips import clips, joint_inputs

    found = {}
    for frames, height, width in SHAPES:
        clip = clips("video", 1, frames=frames, height=height, width=width)
        inputs = joint_inputs(processor, clip, [PROMPT])
        words = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0].tolist())
        special = {word for word in words if word.startswith("<") and word.endswith(">")}
        found[f"{frames} frames of {height}x{width}"] = {
            "ids": _runs(words),
            "sizes": {
                k: _size(k, inputs[k]) for k in sorted(inputs) if "pixel" in k or "grid" in k
            },
            "counts": {word: words.count(word) for word in sorted(special)},
        }
    return found


def _runs(words: list[str]) -> str:
    """Return tokens in one text, equal ones behind each other once with their number."""
    runs = [(word, len(list(same))) for word, same in itertools.groupby(words)]
    return " ".join(word if count == 1 else f"{word}*{count}" for word, count in runs)


def _size(name: str, value: Any) -> str:
    """Return the values of a grid, of anything else its shape."""
    return str(value.tolist() if "grid" in name else list(value.shape))


def counted_positions(family: str) -> str:
    """Return the positions of a prompt with a video as a tiny model of a family counts them; empty
    where it counts them in one axis."""
    import inspect

    import torch

    from tests.support.tiny_families import FAMILIES

    model = FAMILIES[f"{family}:video"]()[0]
    owner = next((part for part in model.modules() if hasattr(part, "get_rope_index")), None)
    if owner is None:
        return ""
    ids, kinds, grid = _prompt(family, owner.config)
    given = {
        "mm_token_type_ids": torch.tensor([kinds]),
        "video_grid_thw": torch.tensor([grid]),
        "second_per_grid_ts": torch.tensor([2.0]),
        "second_per_grids": torch.tensor([2.0]),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
    }
    known = inspect.signature(owner.get_rope_index).parameters
    positions, delta = owner.get_rope_index(
        torch.tensor([ids]), **{name: value for name, value in given.items() if name in known}
    )
    parts, start = [], 0
    for kind, run in itertools.groupby(kinds):
        end = start + len(list(run))
        axes = positions[:, 0, start:end].long()
        spans = [f"{int(axis.min())}-{int(axis.max())}" for axis in axes]
        parts.append(f"video {' '.join(spans)}" if kind else f"text {spans[0]}")
        start = end
    return f"{'; '.join(parts)}; next {len(ids) + int(delta.flatten()[0])}"


def _prompt(family: str, config: Any) -> tuple[list[int], list[int], tuple[int, int, int]]:
    """Return ids, their kinds (2: of a video) and the grid of a prompt with a video."""
    whole = family in WHOLE or "omni_moe" in family
    steps, rows, columns = GRIDS[whole]
    vision = config.vision_config
    groups = steps // (getattr(vision, "temporal_merge_size", 1) if whole else 1)
    merge = getattr(vision, "spatial_merge_size", 2)
    count = (groups if whole else 1) * (rows // merge) * (columns // merge)
    start, end = (getattr(config, f"vision_{name}_token_id", 7) for name in ("start", "end"))
    pad = config.video_token_id
    ids, kinds = [7] * (BEFORE - 1), [0] * (BEFORE - 1)
    for _ in range(1 if whole else groups):
        ids += [start, *[pad] * count, end]
        kinds += [0, *[2] * count, 0]
    return ids + [7] * (BEHIND - 1), kinds + [0] * (BEHIND - 1), (steps, rows, columns)


def positioned() -> list[str]:
    """Return the families that may count positions in several axes and take a grid of videos."""
    from tests.support.tiny_families import FAMILIES

    names = (name.removesuffix(":video") for name in FAMILIES if name.endswith(":video"))
    return [name for name in names if name != "minicpmv4_7"]  # it takes sizes, not grids


def record() -> Record:
    """Return what the installed release makes of all families."""
    made: Record = {family: of_processor(build()) for family, build in processors().items()}
    for family in positioned():
        if positions := counted_positions(family):
            made.setdefault(family, {})["positions"] = positions
    return dict(sorted(made.items()))


def differences(recorded: Any, found: Any, release: str, where: str = "") -> Iterator[str]:
    """Yield a line for each value that the installed release makes otherwise."""
    if isinstance(recorded, dict) and isinstance(found, dict):
        for name in [*recorded, *(set(found) - set(recorded))]:
            path = f"{where}, {name}" if where else name
            yield from differences(recorded.get(name), found.get(name), release, path)
    elif recorded != found:
        yield (
            f"{where}: transformers {release} gave {recorded}, "
            f"transformers {version('transformers')} gives {found}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--write", action="store_true", help="record the installed release")
    arguments = parser.parse_args()
    found = {"transformers": version("transformers"), "families": record()}
    if arguments.write:
        RECORDED.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        return 0
    kept = json.loads(RECORDED.read_text())
    lines = [*differences(kept["families"], found["families"], kept["transformers"])]
    print("\n".join(lines) or f"nothing differs from transformers {kept['transformers']}")
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
