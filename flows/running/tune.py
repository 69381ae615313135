"""Runs a training job, from its configuration to an adapter.

Media of the examples that are not encoded yet are encoded first, as in any run. One process then
trains on the features alone, resumes where an earlier one ended, and writes the adapter.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from artifacts.errors import UsageError
from artifacts.keys import digest_of
from artifacts.owned_folders import refuse_foreign
from artifacts.paths import folder_named
from artifacts.store import open_store
from artifacts.words import counted
from flows.checkpoint.adapters import way_notes, way_recipe
from flows.console.display import Display
from flows.job.contents import refuse_placeholders
from flows.job.prepare import Job
from flows.job.replanning import replanned_once
from flows.ledger.tasks import Medium, Task
from flows.ledger.waves import BYTES_A_TOKEN
from flows.machine.launch import DirectLauncher, StageCall
from flows.media.example import Example
from flows.media.tune_data import examples_in, split
from flows.options.commands import RunOptions
from flows.options.model import AdapterOptions, default_store
from flows.options.tune import EPOCHS, TrainingOptions, TuneConfig, TuneRun
from flows.pipelines import TUNE
from flows.planning.rungs import Rung
from flows.results.tuned import (
    RUN,
    AdapterScore,
    Tuned,
    begun_way,
    refuse_other,
    scored_in,
    tuned_in,
)
from flows.running.calls import StageCallBuilder
from flows.running.run import LauncherMaker, prepared
from flows.running.run_observer import OnBegin, RunObserver
from stages.models.adapters.reading import ADAPTER_CONFIG, ADAPTER_WEIGHTS, read_adapter
from stages.models.hub.transfer import Announce
from stages.tune import OUTPUT_VERSION, STAGE
from stages.tune.job import CHECKPOINT, RECORD, TuneItem, TuneJob
from stages.tune.layout import layout_in

BOARD = "tensorboard"
"""Folder of the run for what TensorBoard shows."""
MOST_LOST, CHECKPOINTS = 25, 8
"""Steps that a kill loses at the most, and times that a short training is kept."""
NEAR_SECONDS = 0.05
"""Times of one chunk may differ so much: outputs round them."""


def tune(
    config: TuneConfig,
    display: Display,
    make_launcher: LauncherMaker = DirectLauncher,
    on_begin: OnBegin | None = None,
) -> Tuned | AdapterScore:
    """Train the adapter that is asked for, or score one. Raises PenstockError; what is learned
    is kept."""
    examples, asked = asked_of(config, display.say)

    def attempt() -> None:
        watch = RunObserver(display, on_begin)
        _train(config, config.as_published, examples, asked, watch, make_launcher)

    replanned_once(attempt, display.say)
    out = Path(asked.out).parent
    return (
        scored_in(out, AdapterOptions.of(asked).adapter) if config.validate_only else tuned_in(out)
    )


def _train(
    config: TrainingOptions,
    way: bool | None,
    examples: Sequence[Example],
    asked: RunOptions,
    watch: RunObserver,
    make_launcher: LauncherMaker,
) -> None:
    """Encode what is missing, and train."""
    out = Path(asked.out).parent
    with prepared(asked, watch, make_launcher, TUNE) as (job, launcher):
        _check(config, job, examples, out)
        if (out / ADAPTER_WEIGHTS).is_file():
            for note in way_notes(way, read_adapter(out), job.model.folder):
                watch.say(note)
        doing, outputs = "tuning into", {"adapter": str(out)}
        with watch.working(job, launcher, doing, outputs=outputs) as (sequence, _, _):
            if asked.sources:
                sequence.fill()
            with sequence.going_on():
                make, steps = _job(config, job, examples, out)

                def call(rung: Rung) -> StageCall:
                    on = {"recompute": rung.recompute, "optimizer": rung.optimizer}
                    return StageCallBuilder(job).once(
                        STAGE, partial(make, rows=rung.batch, **on), rung
                    )

                sequence.once.run(STAGE, call, total=steps)


def asked_of(config: TuneConfig, say: Announce = lambda _: None) -> tuple[list[Example], TuneRun]:
    """Return the examples, and the run that encodes and trains on them; `say` is told what reviews
    leave out. Raises UsageError for media that are not there."""
    out = folder_named(config.out, "out")
    refuse_foreign(out, (RUN, CHECKPOINT), (RECORD, ADAPTER_CONFIG, ADAPTER_WEIGHTS))
    if config.tensorboard and find_spec("tensorboard") is None:
        raise UsageError(
            "--tensorboard needs TensorBoard, which is not installed",
            hint="pip install 'penstock[tensorboard]'; the report shows the same curves without",
        )
    examples = examples_in(config.data, say, open_store(config.store or default_store()))
    missing = [each for each in examples if not each.path.is_file() and not each.features]
    if missing:
        raise UsageError(
            f"{missing[0].path} is not there ({len(missing)} of {len(examples)} media are missing)",
            hint="Check the paths; they are seen from the data's folder",
        )
    sources = tuple(dict.fromkeys(str(each.path) for each in examples if each.path.is_file()))
    scored = config.validate_only and (out / ADAPTER_CONFIG).is_file()
    longest = max(len(each.caption.encode()) for each in examples)
    tokens = math.ceil(longest / BYTES_A_TOKEN)
    adapter = str(out) if scored else ""
    return examples, config.captioning(sources, str(out / RUN), tokens, adapter, begun_way(out))


def _check(config: TrainingOptions, job: Job, examples: Sequence[Example], out: Path) -> None:
    """Refuse a model that cannot be trained, and to train over another adapter, before anything is
    encoded. Raises UsageError."""
    if job.model.profile.route == "joint":
        raise UsageError(
            f"{job.model.name} is run whole (joint): it has no features to train on",
            hint="Choose a model that runs in halves: docs/models.md",
        )
    if not config.validate_only:
        refuse_other(out, _recipe(config, job, _ways(config, examples)), resume=config.resume)
        if config.resume:
            layout_in(out, config.lora_rank)


def _parts(
    config: TrainingOptions, examples: Sequence[Example]
) -> tuple[Sequence[Example], Sequence[Example]]:
    """Return those to train on, and those to score by."""
    return ([], examples) if config.validate_only else split(examples, config.validate, config.seed)


def _ways(config: TrainingOptions, examples: Sequence[Example]) -> dict[str, Any]:
    """Return how the stage is told to train, whatever its examples are of."""
    trained, _ = _parts(config, examples)
    batch = min(config.batch_size, max(1, len(trained)))
    epoch_steps = math.ceil(len(trained) / batch)
    steps = config.steps or max(1, math.ceil((config.epochs or EPOCHS) * epoch_steps))
    return {
        "rank": config.lora_rank,
        "steps": steps,
        "batch": batch,
        "rate": config.lr,
        "seed": config.seed,
        "max_new_tokens": config.max_new_tokens,
        "resume": config.resume,
    }


def _recipe(config: TrainingOptions, job: Job, ways: Mapping[str, Any]) -> dict[str, Any]:
    """Return all that decides an adapter but its examples. Precision and optimizer are as they were
    asked: a rung that a training went down to is no other training."""
    asked = {"precision": config.precision, "optimizer": config.optimizer}
    model = {"model": job.model.digests["language"], **way_recipe(job.model.profile.as_published)}
    return {"version": OUTPUT_VERSION, **model, **asked, **ways}


def _job(
    config: TrainingOptions, job: Job, examples: Sequence[Example], out: Path
) -> tuple[Callable[..., TuneJob], int]:
    """Return what makes the job of the stage on a rung, and its steps. Raises UsageError."""
    members, ways = _members(job, examples), _ways(config, examples)
    chosen = {each.item: member for each, member in zip(examples, members, strict=True)}
    trained, held = ([chosen[each.item] for each in part] for part in _parts(config, examples))
    data = [[each._asdict() for each in part] for part in (trained, held)]
    recipe = {**_recipe(config, job, ways), "data": digest_of(data)}
    if not config.validate_only:
        refuse_other(out, recipe, resume=config.resume)
    steps: int = ways["steps"]
    make = partial(
        TuneJob,
        **ways,
        store=job.store.url,
        features_namespace=job.ledger.namespaces["features"],
        folder=str(out / RUN if config.validate_only else out),
        checkpoint_steps=max(1, min(MOST_LOST, steps // CHECKPOINTS)),
        tensorboard=str(out / RUN / BOARD) if config.tensorboard else "",
        recipe=recipe,
    )
    return partial(make, examples=trained, held_out=held), steps


def _members(job: Job, examples: Sequence[Example]) -> list[TuneItem]:
    """Return features, prompt and caption of each example. Raises UsageError for one whose chunk is
    not there."""
    kept = job.ledger["features"]
    tasks: dict[str, list[Task]] = {}
    for file, medium in zip(job.files, job.contents, strict=True):
        tasks[str(file.path)] = job.ledger.tasks([medium])
    found = []
    for each in examples:
        key = each.features if each.features in kept else _key(job, each, tasks)
        kind = next((t.medium.kind for t in tasks.get(str(each.path), ())), "video")
        prompt = each.prompt or job.model.prompt_for(job.config, kind)
        refuse_placeholders(
            [Medium(digest="", path=str(each.path), kind=kind, prompt=prompt)], job.model
        )
        found.append(TuneItem(key, prompt, each.caption.strip()))
    return found


def _key(job: Job, example: Example, tasks: Mapping[str, Sequence[Task]]) -> str:
    of_file = tasks.get(str(example.path), ())
    if not of_file:
        raise UsageError(
            f"{example.path.name} has no features of {job.model.name}, and cannot be encoded",
            hint="Check that the file is there, and that it is captioned by this model",
        )
    chunks = [
        task
        for task in of_file
        if (example.start is None and len(of_file) == 1)
        or (
            example.start is not None
            and abs(task.chunk.start - example.start) < NEAR_SECONDS
            and (example.end is None or abs(task.chunk.end - example.end) < NEAR_SECONDS)
        )
    ]
    if not chunks:
        raise UsageError(
            f"{example.path.name} is cut in {counted(len(of_file), 'chunk')}, and none is what the "
            "caption is of",
            hint="Give start and end as captions.jsonl of this model has them",
        )
    return chunks[0]["features"]
