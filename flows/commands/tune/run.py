"""Runs a training job, from its configuration to an adapter.

Media of the examples without stored features are encoded first, as in any run. One process then
trains on the features alone, resumes from the last checkpoint, and writes the adapter.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from artifacts.digests import digest_of
from artifacts.disk.files import refuse_foreign
from artifacts.disk.json_shapes import Json
from artifacts.disk.paths import folder_named
from artifacts.errors import EnvironmentFault, NoFeatures, UsageError
from artifacts.records.store import open_store
from artifacts.tiles import AUTO, OFF
from artifacts.wording import counted
from flows.commands.tune import TUNE
from flows.commands.tune.result import (
    RUN,
    AdapterScore,
    Tuned,
    refuse_other_recipe,
    scored_in,
    steps_in,
    tuned_in,
)
from flows.commands.tune.training_data import Example, examples_in, split
from flows.core.checkpoint.adapters import adapter_notes, as_published_fields, base_digest
from flows.core.console.display import Display
from flows.core.job.plan_record import PlanRecord
from flows.core.job.prepare import Job, sound_note
from flows.core.job.replan import replanned_once
from flows.core.ledger.prompts import prompt_for, refuse_control_words
from flows.core.ledger.tasks import Task
from flows.core.ledger.waves import most_tokens
from flows.core.machine.launch import DirectLauncher, StageCall
from flows.core.options.commands import RunOptions
from flows.core.options.media import DROP, OVERLAP
from flows.core.options.packages import check_training_packages
from flows.core.options.store import default_store
from flows.core.options.training import EPOCHS, TrainingOptions, TuneConfig, TuneRun
from flows.core.plan.ladder import Rung
from flows.execution.run import LauncherMaker, prepared
from flows.execution.run_observer import OnBegin, RunObserver
from flows.execution.stage_calls import StageCallBuilder
from flows.outputs.record.run_read import load_record
from stages.models.adapter_modules import ADAPTER_CONFIG, ADAPTER_WEIGHTS, read_adapter
from stages.models.hub.transfer import Announce
from stages.tune import CHECKPOINT, OUTPUT_VERSION, RECORD, STAGE, TuneItem, TuneJob
from stages.tune.layout import layout_in

BOARD = "tensorboard"
"""Folder of the run for TensorBoard's files."""
MAX_LOST_STEPS, MIN_CHECKPOINTS = 25, 8
"""Most training steps that a kill may lose, and number of checkpoints of a short training."""
TIME_TOLERANCE_SECONDS = 0.05
"""Largest difference between two times of one chunk; outputs round times."""


def tune(
    config: TuneConfig,
    display: Display,
    make_launcher: LauncherMaker = DirectLauncher,
    on_begin: OnBegin | None = None,
) -> Tuned | AdapterScore:
    """Train the requested adapter, or score one. Raises PenstockError; checkpoints stay."""
    examples, run = resolve_run(config, display.print_line)

    def attempt() -> None:
        observer = RunObserver(display, on_begin)
        train(config, examples, run, observer, make_launcher)

    replanned_once(attempt, display.print_line)
    out = Path(run.out).parent
    return scored_in(out, run.groups.adapter.adapter) if config.validate_only else tuned_in(out)


def train(
    config: TrainingOptions,
    examples: Sequence[Example],
    run: RunOptions,
    observer: RunObserver,
    make_launcher: LauncherMaker,
) -> None:
    """Encode the missing features, and train or score in the folder above that of `run`. Raises
    PenstockError."""
    out = Path(run.out).parent
    with prepared(run, observer, make_launcher, TUNE) as (job, launcher):
        refuse_untrainable(config, examples, out, job)
        if (out / ADAPTER_WEIGHTS).is_file():
            for note in adapter_notes(read_adapter(out), job.model.checkpoint, job.model.weights):
                observer.display.print_line(note)
        doing, outputs = "tuning into", {"adapter": str(out)}
        with observer.pipeline_for_job(job, launcher, doing, outputs=outputs) as runner:
            if run.sources:
                runner.compute_records()
            with runner.keep_running():
                make, steps, recipe = _job(config, job, examples, out)

                def call(rung: Rung) -> StageCall:
                    on = {"recompute": rung.recompute, "optimizer": rung.optimizer}
                    return StageCallBuilder(job).one_shot_call(
                        STAGE, partial(make, rows=rung.batch, **on), rung
                    )

                if config.validate_only:
                    runner.stages.run_once(STAGE, call)
                else:
                    done = partial(steps_in, out, recipe)
                    runner.stages.run_once(STAGE, call, total=steps, done=done)


def resolve_run(
    config: TuneConfig, announce: Announce = lambda _: None
) -> tuple[list[Example], TuneRun]:
    """Return the examples, and the run that encodes and trains on them. `announce` is called with a
    note about captions that reviews exclude. Raises UsageError for missing media
    or packages."""
    check_training_packages(config)
    out = folder_named(config.out, "out")
    refuse_foreign(out, (RUN, CHECKPOINT), (RECORD, ADAPTER_WEIGHTS))
    examples = examples_in(config.data, announce, open_store(config.store or default_store()))
    missing = [e for e in examples if not e.path.is_file() and not e.features]
    if missing:
        raise UsageError(
            f"{missing[0].path}: no such file ({len(missing)} of {len(examples)} media are "
            "missing)",
            hint="Check the paths; they are relative to the data's folder",
        )
    sources = tuple(dict.fromkeys(str(e.path) for e in examples if e.path.is_file()))
    scored = config.validate_only and (out / ADAPTER_CONFIG).is_file()
    tokens = most_tokens(example.caption for example in examples)
    adapter = str(out) if scored else ""
    begun = str(out) if (out / ADAPTER_WEIGHTS).is_file() else ""
    sampling = _recorded_sampling(Path(config.data).expanduser(), config.model)
    return examples, config.captioning(sources, str(out / RUN), tokens, adapter, begun, sampling)


def _recorded_sampling(data: Path, model: str) -> dict[str, Any]:
    """Return the options of frame sampling, and the form of stored features, of the run whose
    captions are the data: its stored features are of these frames. Of a run of another model only
    the chunks count. Without a run's record, return none."""
    try:
        plan = load_record(data.parent).plan if data.is_file() else PlanRecord()
        if (sampling := plan.sampling) is None:
            return {}
        options: dict[str, Any] = {"chunk": sampling.chunk_seconds, "whole": sampling.whole}
        options |= {"shots": sampling.shots, "chapters": sampling.chapters}
        if sampling.clip_frames:
            options |= {"chunk": None, "clip_own": sampling.clip_own}
            options |= {name: getattr(sampling, name) for name in ("clip_frames", "clip_fps")}
            options["clip_rest"] = OVERLAP if sampling.clip_overlap else DROP
        if model in (plan.model, plan.folder):
            options |= {name: getattr(sampling, name) for name in ("fps", "frames", "max_frames")}
            options["deinterlace"] = AUTO if sampling.deinterlace else OFF
            options |= {"max_pixels": plan.max_pixels, "max_video_pixels": plan.max_video_pixels}
            options["features_as"] = plan.features_as
        TuneRun(sources=(), model=model, **options)  # refuses what no run has had
    except (TypeError, EnvironmentFault, UsageError):  # none, or a damaged one
        return {}
    return options


def refuse_untrainable(
    config: TrainingOptions, examples: Sequence[Example], out: Path, job: Job
) -> None:
    """Check that the model can be trained on these captions, and that no other adapter is
    overwritten. This runs before anything is encoded, and in a dry run. Raises UsageError."""
    if job.model.profile.route == "joint":
        raise UsageError(
            f"{job.model.name}: no features to train on (the model cannot be split, route: joint)",
            hint="Choose a model that can be split: docs/models.md",
        )
    data = f"{config.data}: " if isinstance(config, TuneConfig) else ""
    refuse_untrainable_texts(examples, job, data)
    if not config.validate_only:
        refuse_other_recipe(
            out, _recipe(config, job, _training_fields(config, job, examples)), resume=config.resume
        )
        if config.resume:
            layout_in(out, config.lora_rank)


def refuse_untrainable_texts(examples: Sequence[Example], job: Job, data: str = "") -> None:
    """Raise ControlWord for control words of the model in captions, with their place in the
    `data`, or its image placeholders in prompts."""
    for example in examples:
        refuse_control_words(f"{data}{example.place}", example.caption, job.model, answers=True)
        refuse_control_words(f"the prompt of {data}{example.place}", example.prompt, job.model)


def _parts(
    config: TrainingOptions, job: Job, examples: Sequence[Example]
) -> tuple[Sequence[Example], Sequence[Example]]:
    if config.validate_only:
        return [], examples
    contents = {str(job_file.file.path): job_file.medium.digest for job_file in job.files}
    return split(examples, config.validate, config.seed, contents)


def _training_fields(
    config: TrainingOptions, job: Job, examples: Sequence[Example]
) -> dict[str, Any]:
    """Return the training settings of the job, without its examples."""
    trained, _ = _parts(config, job, examples)
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


def _recipe(config: TrainingOptions, job: Job, fields: Mapping[str, Json]) -> dict[str, Json]:
    """Return the key fields of an adapter, without its examples. Precision and optimizer are those
    requested, so a fallback rung does not change the key."""
    requested: dict[str, Json] = {"precision": config.precision, "optimizer": config.optimizer}
    model: dict[str, Json] = {
        "model": job.model.digests["language"],
        **as_published_fields(job.model.profile.as_published),
        **({"answer_blank": blank} if (blank := job.model.profile.answer_blank) else {}),
        **({"behind_reasoning": True} if job.model.profile.opens_reasoning else {}),
    }
    return {"version": OUTPUT_VERSION, **model, **requested, **fields}


def _job(
    config: TrainingOptions, job: Job, examples: Sequence[Example], out: Path
) -> tuple[Callable[..., TuneJob], int, dict[str, Json]]:
    """Return the function that builds the stage's job on a rung, its number of steps, and its
    recipe. Raises UsageError."""
    fields = _training_fields(config, job, examples)
    trained, held_out = (_items(job, part) for part in _parts(config, job, examples))
    parts = [[example._asdict() for example in part] for part in (trained, held_out)]
    data = [[{n: f[n] for n in f if f[n] is not False} for f in part] for part in parts]
    recipe = {**_recipe(config, job, fields), "data": digest_of(data)}
    if not config.validate_only:
        refuse_other_recipe(out, recipe, resume=config.resume)
    steps: int = fields["steps"]
    make = partial(
        TuneJob,
        **fields,
        store=job.store.url,
        features_namespace=(own := job.ledger.variant["features"]),
        other_features=sorted({v["features"] for v in job.ledger.variants} - {own}),
        folder=str(out / RUN if config.validate_only else out),
        checkpoint_steps=max(1, min(MAX_LOST_STEPS, steps // MIN_CHECKPOINTS)),
        tensorboard=str(out / RUN / BOARD) if config.tensorboard else "",
        base=base_digest(job.model.weights),
        sound=OFF if sound_note(job.model) else "",
        recipe=recipe,
    )
    return partial(make, examples=trained, held_out=held_out), steps, recipe


def _items(job: Job, examples: Sequence[Example]) -> list[TuneItem]:
    """Return features, prompt and caption of each example. Raises NoFeatures if a chunk is
    missing."""
    stored = job.ledger["features"]
    tasks = {str(job_file.file.path): job.ledger.tasks([job_file.medium]) for job_file in job.files}
    items = []
    for example in examples:
        key = example.features if example.features in stored else _key(job, example, tasks)
        kind = next((t.medium.kind for t in tasks.get(str(example.path), ())), "video")
        prompt = example.prompt or prompt_for(job.model, job.config, kind)
        items.append(example.target._replace(features=key, prompt=prompt))
    return items


def _key(job: Job, example: Example, tasks: Mapping[str, Sequence[Task]]) -> str:
    of_file = tasks.get(str(example.path), ())
    if not of_file:
        raise NoFeatures(
            f"{example.path.name}: no stored features of {job.model.name}, and no file to encode",
            hint="Check that the file exists, or that this model captioned it",
        )
    if example.content not in ("", of_file[0].medium.digest):
        raise NoFeatures(
            f"{example.path.name}: no stored features of {job.model.name}, and the file now "
            "holds other content than was captioned",
            hint="Caption it again, and train on that",
        )
    chunks = [
        task
        for task in of_file
        if (example.start is None and len(of_file) == 1)
        or (
            example.start is not None
            and abs(task.chunk.start - example.start) < TIME_TOLERANCE_SECONDS
            and (example.end is None or abs(task.chunk.end - example.end) < TIME_TOLERANCE_SECONDS)
        )
    ]
    if not chunks:
        raise NoFeatures(
            f"{example.path.name}: none of {counted(len(of_file), 'chunk')} matches the caption's "
            "start and end",
            hint="Copy start and end from this model's captions.jsonl",
        )
    return chunks[0]["features"]
