"""Summarizes a job for the console and the run record. Runs nothing.

Notes on cache namespaces are stored, and list the model and the settings of each cache namespace.
Another note describes how the model's context limits the frames of a chunk.
"""

import math
from collections import Counter

from artifacts.digests import digest_of
from artifacts.disk.json_shapes import Json
from artifacts.schema import Part, values_of
from artifacts.wording import counted, reasons
from flows.core.checkpoint.frame_room import frames_of_any_size
from flows.core.checkpoint.frame_sampling import full_chunk, requested_sampling
from flows.core.checkpoint.models import Model
from flows.core.checkpoint.precision import PartSettings, precision_note
from flows.core.job.away import recorded_in
from flows.core.job.plan_record import (
    AdapterRecord,
    FixedWords,
    GgufRecord,
    GraphRecord,
    HalfRecord,
    PlanRecord,
    RecordedPlan,
    SamplingRecord,
)
from flows.core.job.prepare import Job
from flows.core.ledger.prompts import PREVIOUS
from flows.core.machine.versions import versions
from flows.core.media.media_file import Selection
from flows.core.media.sources import left_out_note
from flows.core.options.commands import RunOptions
from flows.core.options.media import MIN_CHUNK_SECONDS
from stages.decode.json_schema import ignored_note
from stages.models.profile import PartProfile
from stages.process.device import device_model, hidden, unused_gpu
from stages.process.stage_spec import CHUNK


def context_note(model: Model, config: RunOptions) -> str:
    """Return how many frames of a chunk fit the context if not all do, or that the context is
    unknown; else an empty string."""
    profile = model.profile
    if profile.route in ("dual", "served") or profile.is_encoder_decoder:
        return ""
    if not profile.context_tokens:
        return f"{model.name} does not state its context length, so it limits no frames"
    sampling = requested_sampling(profile, config)
    max_frames = frames_of_any_size(model.beside_sound(config))
    requested = full_chunk(sampling)
    if not max_frames or requested <= max_frames:
        return ""
    context = f"its context of {profile.context_tokens:,} tokens"
    fit = "frame of a chunk fits" if max_frames == 1 else "frames of a chunk fit"
    remedy = "shorter chunks (--chunk) show more"
    if sampling.fps and sampling.min_frames <= max_frames:
        # Rounded down: more than these seconds have a frame more.
        seconds = math.floor(100 * max_frames / sampling.fps) / 100
        if seconds >= MIN_CHUNK_SECONDS:
            remedy = f"--chunk {seconds:.10g} shows them all"
    return f"{model.name}: {max_frames:,} {fit} {context}, of {requested:,}; {remedy}"


MADE_BY = ("weights", "commit", "penstock")
"""What the record of a caption says of the model and the program that made it."""


def made_by(model: Model) -> dict[str, str]:
    """Return these values for a model as it is now, without unknown ones."""
    weights = digest_of(dict(model.digests))[:16] if model.digests else ""
    values = (weights, model.checkpoint.commit or "", versions().get("penstock", ""))
    return {name: value for name, value in zip(MADE_BY, values, strict=True) if value}


def decided_by(job: Job) -> dict[str, str]:
    """Return what decides the records of a job, in words, and a short form of its value."""
    model, config = job.model, job.config
    question, prompts = config.groups.question, config.groups.prompts
    values: dict[str, Json] = {
        "the model": model.name,
        **{f"weights of the {part} half": digest for part, digest in model.digests.items()},
        **{f"precision of the {part} half": kind for part, kind in model.precision().items()},
        "frame sampling": job.sampling.settings,
        "size of pictures": {kind: values_of(model.fit(kind)) for kind in ("video", "image")},
        "the prompt": [question.prompt, dict(prompts.prompts), prompts.length],
        "generation": config.groups.generation.non_defaults,
        "--max-new-tokens": config.groups.engine.max_new_tokens,
        "Penstock, which makes other records": [stage.output_version for stage in job.stages],
    }
    return {name: digest_of(f"{value}")[:16] for name, value in values.items()}


def again_note(job: Job) -> str:
    """Return a note that names the records that the run makes again, or for further prompts alone,
    and why. Return an empty text if the store has the records of all media that have rows in the
    folder."""
    missing, done, to_do = Counter[str](), set[str](), set[str]()
    for medium in job.media if job.before else ():
        if medium.digest not in job.before or job.ledger.failure(medium):
            continue
        if job.ledger.media_index(medium) is None:
            missing["files"] += 1
        for task in job.ledger.tasks([medium]):
            stages = () if job.ledger.has_failed(task) else job.ledger.stages_of(task)
            (done if job.ledger.is_done(task) else to_do).add(medium.prompt)
            missing.update(stage.writes for stage in stages if not job.ledger.has(task, stage))
    recorded = recorded_in(job.out, RecordedPlan) if missing else None
    if not missing or (recorded and not recorded.plan.decided_by):  # the rows are marks of no model
        return ""
    before, now = recorded.plan.decided_by if recorded else {}, decided_by(job)
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    why = f"changed since the last run: {', '.join(changed)}"
    is_added = done and done.isdisjoint(to_do) and changed == ["the prompt"]
    what = "made for further prompts" if is_added else "made again"
    return f"{what}: {reasons(missing)} ({why if changed else 'the store has no record of it'})"


def summary(job: Job) -> PlanRecord:
    """Return the plan of the run, as `run.json` stores it."""
    video, wording = job.config.groups.video, job.config.groups.text
    generation, served = job.config.groups.generation, job.model.served
    return PlanRecord(
        model=job.model.name,
        revision=job.config.revision,
        commit=job.model.checkpoint.commit,
        folder=str(job.model.folder),
        device=job.device,
        card=device_model(job.device) or None,
        precision=job.model.precision(),
        as_published=job.model.profile.as_published,
        sampling=SamplingRecord.of(job.sampling),
        max_pixels=video.max_pixels or None,
        max_video_pixels=video.max_video_pixels or None,
        features_as=job.model.features_as,
        batch_size=job.config.batch_size,
        generation=generation.non_defaults,
        words=FixedWords(
            prefix=wording.prefix,
            suffix=wording.suffix,
            schema=generation.schema,
            trigger=wording.trigger,
        ),
        store=job.store.url,
        media=len(job.by_file),
        clock=job.config.groups.outputs.clock,
        prompts=max(1, len(job.files) // max(1, len(job.by_file))),
        counts=noun_of(job),
        decided_by=decided_by(job),
        halves={str(part): half for part, half in halves(job.model).items()},
        route=job.model.profile.route,
        served=served.to_json() if served else None,
        notes=notes(job),
    )


def noun_of(job: Job) -> str:
    """Return what the chunks of a job are called where they are counted."""
    return "image" if all(f.medium.kind == "image" for f in job.files) else CHUNK


def notes(job: Job) -> list[str]:
    """Return notes for the user on how the model runs; none for most models."""
    profile = job.model.profile
    settings = [settings[0] for settings in job.model.settings.values()]
    lines = list(filter(None, [precision_note(profile, settings, job.device), *job.model.notes]))
    selection = Selection(recursive=job.config.recursive, extensions=job.config.extensions)
    lines.extend(filter(None, [left_out_note(job.config.sources, selection)]))
    if job.device == "cpu" and not hidden() and (unused := unused_gpu()):
        lines.append(f"{unused}; models run on the CPU")
    if profile.route == "joint":
        lines.append(
            f"{job.model.name} cannot be run in halves ({profile.why}): the second stage loads all "
            "of it, and what is kept for another prompt is its pixels"
        )
    elif profile.prompted:
        lines.append(
            f"{job.model.name} looks at pictures with the prompt in mind: another encodes anew"
        )
    if profile.lacks_template:
        lines.append(
            f"{job.model.name} has no chat template, but tokens that begin a turn: captions may be "
            "poor; download it again, with its chat_template file"
        )
    if profile.continues_prompt and job.config.groups.question.prompt is None:
        lines.append(
            f"{job.model.name} goes on from the prompt instead of answering it, so it is given "
            "none; --prompt gives its captions a beginning"
        )
    if profile.one_frame and any(f.medium.kind == "video" for f in job.files):
        lines.append(
            f"{job.model.name} takes one picture a prompt: of each chunk of a video it sees the "
            "middle frame only"
        )
    elif profile.frames_per_video:
        lines.append(
            f"{job.model.name} takes {counted(profile.frames_per_video, 'frame')} of each chunk, "
            "no more and no fewer"
        )
    lines += filter(
        None,
        [
            again_note(job),
            _whole(job),
            _chained(job),
            _context(job),
            _as_published(job),
            ignored_note(job.config.groups.generation.schema),
        ],
    )
    return [*lines, *job.notes]


def _whole(job: Job) -> str:
    """Return how many frames represent a video that is captioned as a whole."""
    sampling = job.sampling
    if not sampling.whole or not any(f.medium.kind == "video" for f in job.files):
        return ""
    frames = sampling.frames or sampling.max_frames
    if frames == 1:
        return "each video is captioned as a whole, by its middle frame"
    qualifier = "" if sampling.frames else "at most "
    return f"each video is captioned as a whole, by {qualifier}{frames} frames evenly over it"


def _chained(job: Job) -> str:
    if not any(f.medium.uses_previous_caption for f in job.files):
        return ""
    return (
        f"chunks are captioned one after the other, because {PREVIOUS} stands in their prompt: the "
        "language half is loaded once for each chunk of the longest video"
    )


def _unseen(job: Job) -> str:
    """Return which frames of a chunk the model does not see because of its processor's frame
    limit."""
    stated, sampling = job.model.profile.sampling, job.sampling
    if sampling.whole or not (stated.seconds and sampling.fps):
        return ""
    frames = math.ceil(sampling.chunk_seconds * sampling.fps)
    limit = sampling.max_frames
    if frames <= limit or not any(f.medium.kind == "video" for f in job.files):
        return ""
    return (
        f"{job.model.name} sees {counted(limit, 'frame')} of a chunk: of {frames} in "
        f"{sampling.chunk_seconds:g} s at {sampling.fps:g} per second, {frames - limit} are not "
        f"seen; --chunk {limit / sampling.fps:g} shows them all"
    )


def _context(job: Job) -> str:
    """Return that the context length is unknown, or else which frames the processor leaves out. The
    effect of a known context depends on the length of the files."""
    videos = any(f.medium.kind == "video" for f in job.files)
    note = context_note(job.model, job.config) if videos else ""
    is_known = job.model.profile.context_tokens > 0
    return ("" if is_known else note) if note else _unseen(job)


def _as_published(job: Job) -> str:
    parts = job.model.profile.parts.values()
    details = [part.as_published for part in parts if part.as_published]
    if not details or not job.model.profile.as_published:
        return ""
    return f"{job.model.name} is computed as its published code does: {', '.join(details)}"


def halves(model: Model) -> dict[Part, HalfRecord]:
    """Return parameters, stored and loaded bytes, precision and attention of each part."""
    parts = model.profile.parts
    return {part: _half(parts[part], settings[0]) for part, settings in model.settings.items()}


def _half(half: PartProfile, settings: PartSettings) -> HalfRecord:
    record = HalfRecord(
        parameters=half.parameters,
        stored_bytes=half.stored_bytes,
        bytes=settings.weight_bytes,
        precision=settings.precision,
        dtype=settings.dtype,
        attention=settings.attention,
    )
    if graph := settings.graph:
        record.graphs = GraphRecord(digest=graph.digest, provider=graph.provider, bytes=graph.bytes)
    if gguf := settings.gguf:
        record.parameters += gguf.parameters - gguf.replaced
        record.gguf_file = GgufRecord(digest=gguf.digest, bytes=gguf.bytes)
    if adapter := settings.adapter:
        record.adapter = AdapterRecord(
            folder=adapter.folder,
            digest=adapter.digest,
            parameters=adapter.parameters,
            bytes=adapter.bytes,
            modules=len(adapter.modules),
        )
    return record
