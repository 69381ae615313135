"""What `penstock tune` makes of the demo: another style from a few hundred captions, and the same
training beside one that is shown pixels; prints tables.

*Style*: captions of clips that the demo never saw are rewritten in styles of two sorts. The ceiling
is what the demo itself tells rightly of the clips that are held out. *Joint*: the same examples,
order and adapter, once on stored features by the language half, once on pixels by the whole model
with its tower frozen, which reads the clips of each step from their files; each in a process of its
own.

    python -m benchmarks.tune [--only style,joint] [--styles clip,tags] [--clips 300]
        [--held-out 100] [--epochs 2]
"""

import argparse
import json
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks._tuning import train

from benchmarks._common import MIB, PENSTOCK, cells, heads, in_fresh_process, met
from benchmarks._shapes import build
from flows.console.display import Display
from flows.machine.cpu import cpu_line
from flows.machine.launch import DirectLauncher
from flows.options.commands import CaptionConfig
from flows.pipelines import REBUILD
from flows.running.run import prepared
from flows.running.run_observer import RunObserver
from penstock_demo import CHECKPOINT
from penstock_demo.clips import write_clips
from stages.process.cgroup import cores

SEEDS = {"train": 11, "held": 12}
SHORT = "80"
"""Most tokens of a caption: twice what the longest has."""
PRECISIONS = ("native", "nf4")
LEAST = {"native": 0.85, "nf4": 0.75}
MOST_SECONDS = 600.0
SAME = 1e-4
TWICE = 2.0


def words_of(caption: str) -> list[str]:
    """Return a caption's words but for those that say nothing of what is seen."""
    bare = re.sub(r"\b(A|a|an|An|on|the)\b ?", "", caption.rstrip("."))
    return [word for word in re.split(r"[ ,]+", bare) if word]


STYLES: dict[str, Callable[[str], str]] = {
    "clip": lambda caption: "clip: " + " ".join(words_of(caption)),
    "tags": lambda caption: "tags: " + ", ".join(words_of(caption)),
}
"""Styles that the demo was never trained to say: a trigger word and a telegram; and a list, with a
comma after each word."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--only", default="style,joint")
    options.add_argument("--styles", default=",".join(STYLES))
    options.add_argument("--clips", type=int, default=300)
    options.add_argument("--held-out", type=int, default=100)
    options.add_argument("--epochs", type=int, default=2, help="of the joint training")
    given = options.parse_args(arguments)
    print(f"{cpu_line('model name')}, {cores()} cores\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="penstock-tune-") as made:
        folder = Path(made)
        if "style" in given.only:
            print(heads("style | adapter, precision | seconds | exact | goal"), flush=True)
            for style in given.styles.split(","):
                for line in learned(folder / style, style, given.clips, given.held_out):
                    print(line, flush=True)
        if "joint" in given.only:
            print("\n".join(joint(folder, given.epochs)))


def write_data(folder: Path, style: str, count: int, seed: int) -> None:
    """Write clips with captions of a style beside them."""
    for truth in write_clips(folder, count, seed):
        (folder / truth.file).with_suffix(".txt").write_text(STYLES[style](truth.caption))


def learned(folder: Path, style: str, clips: int, held_out: int) -> Iterator[str]:
    """Yield what was learned of a style, in each precision."""
    write_data(folder / "train", style, clips, SEEDS["train"])
    write_data(folder / "held", style, held_out, SEEDS["held"])
    ceiling = said(folder, "base", styled=style)
    yield f"| {style} | none: its own style, put into this one | | {ceiling:.0%} of {held_out} | |"
    for precision in PRECISIONS:
        began = time.perf_counter()
        command = ["tune", str(folder / "train"), "--precision", precision]
        penstock(folder, *command, "--out", str(folder / precision), "--max-new-tokens", SHORT)
        seconds = time.perf_counter() - began
        exact = said(folder, precision, "--language-precision", precision)
        held = met(exact >= LEAST[precision] and seconds <= MOST_SECONDS)
        goal = f"≥ {LEAST[precision]:.0%} in ≤ {MOST_SECONDS:.0f} s: {held}"
        yield f"| {style} | {precision} | {seconds:.0f} | {exact:.0%} | {goal} |"


def said(folder: Path, name: str, *more: str, styled: str = "") -> float:
    """Return the share of the clips held out that are captioned to the letter, by an adapter or by
    the demo itself, whose captions are then put into the style."""
    out = folder / f"captions-{name}"
    adapter = [] if styled else ["--adapter", str(folder / name)]
    penstock(folder, "caption", str(folder / "held"), "--out", str(out), *adapter, *more)
    rows = [json.loads(line) for line in (out / "captions.jsonl").read_text().splitlines()]
    right = [(folder / "held" / row["media_path"]).with_suffix(".txt").read_text() for row in rows]
    found = [STYLES[styled](row["caption"]) if styled else row["caption"] for row in rows]
    exact: int = sum(one == other for one, other in zip(found, right, strict=True))
    return exact / len(rows)


def penstock(folder: Path, *command: str) -> None:
    """Run a command on the demo."""
    where = ["--model", "demo", "--store", str(folder / "store"), "--quiet"]
    subprocess.run([*PENSTOCK, *command, *where], check=True)


def joint(folder: Path, epochs: int) -> Iterator[str]:
    """Yield the same training on features and on pixels."""
    names = "model | examples | training | seconds an epoch | of it clips | MiB | losses"
    yield f"\n{heads(names)}"
    for name, model, count in (("demo", CHECKPOINT, 32), ("smolvlm", folder / "smolvlm", 8)):
        if name != "demo":
            build(model, name, 12)
        told = job_of(folder, name, model, count, epochs)
        found = {way: in_fresh_process(train, told, way == "joint") for way in ("staged", "joint")}
        staged, whole = found["staged"], found["joint"]
        for way, words in (("staged", "stored features"), ("joint", "pixels, tower frozen")):
            each, took = found[way]["seconds"] / epochs, found[way]["peak_bytes"] / MIB
            losses = f"{found[way]['losses'][0]:.4f} to {found[way]['losses'][-1]:.4f}"
            clips = found[way]["reading"] / epochs
            figures = (f"{each:.2f}", f"{clips:.2f}", f"{took:,.0f}")
            yield cells([name, count, words, *figures, losses])
        pairs = zip(staged["losses"], whole["losses"], strict=True)
        apart = max(abs(a - b) / max(1.0, abs(a)) for a, b in pairs)
        times = whole["seconds"] / staged["seconds"]
        spared = (whole["peak_bytes"] - staged["peak_bytes"]) / MIB
        yield (
            f"\n{name}: losses {apart:.1e} apart ({met(apart <= SAME)}), x {times:.1f} in time "
            f"({met(times >= TWICE)}), {spared:,.0f} MiB less; the tower is "
            f"{told['tower_bytes'] / MIB:,.0f} ({met(spared * MIB >= told['tower_bytes'])})\n"
        )


def job_of(folder: Path, name: str, model: Path, count: int, epochs: int) -> dict[str, Any]:
    """Return the job of both trainings, with frames and features in a store."""
    clips = folder / f"clips-{name}"
    truths = {truth.file: truth.caption for truth in write_clips(clips, count, 5)}
    config = CaptionConfig(
        sources=(str(clips),),
        model=str(model),
        store=str(folder / f"store-{name}"),
        out=str(folder / f"run-{name}"),
        precision="fp32",
        frames=4,
    )
    observer = RunObserver(Display(quiet=True))
    with (
        prepared(config, observer, DirectLauncher, REBUILD) as (job, launcher),
        observer.pipeline_for_job(job, launcher) as runner,
    ):
        runner.compute_records()
    batch, tasks = 4, job.ledger.tasks(job.media)
    return {
        "model": str(job.model.folder),
        "store": job.store.url,
        "features": job.ledger.namespaces["features"],
        "sampling": asdict(job.sampling),
        "fit": job.model.fit("video").long_edges,
        "prompt": tasks[0].medium.prompt,
        "members": [
            {
                "features": task["features"],
                "path": task.medium.path,
                "caption": STYLES["tags"](truths[Path(task.medium.path).name]),
            }
            for task in tasks
        ],
        "rank": 16,
        "rate": 1e-3,
        "batch": batch,
        "steps": epochs * -(-len(tasks) // batch),
        "threads": 1,
        "tower_bytes": 4 * job.model.profile.vision.parameters,
    }


if __name__ == "__main__":
    main()
