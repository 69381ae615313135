"""Builds the job of a command: sources, checkpoint, cache keys, and the work that is already done.

Under `auto`, a dual encoder published in fp32 may run its vision half in fp16 on a GPU:

1. If the store has the result of a check for this half and kind of GPU, that result decides.
2. If the store has vectors of this half in fp32, they stay valid: fp32.
3. Otherwise the embed stage tries fp16 on the job's first images, stores the result, and the run is
   planned again.

The module also decides whether a run captions what is heard in its videos.
"""

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, groupby
from pathlib import Path

from artifacts.disk.paths import folder_named
from artifacts.errors import EnvironmentFault, UsageError
from artifacts.records.keys import ContentDigests
from artifacts.records.packs import RecordSet, stored_namespaces
from artifacts.records.provenance import anybody, proof_by
from artifacts.records.store import Store, open_store, prepare_store
from artifacts.remote.media_cache import UNREACHABLE
from artifacts.schema import Sampling
from artifacts.texts.captions import Failure
from artifacts.texts.edits import EditsInForce
from artifacts.texts.stored_answers import StoredAnswers
from artifacts.texts.trainers import WITH_SOUND
from artifacts.tiles import OFF
from artifacts.wording import first_of
from flows.core.checkpoint.models import Model, digests_in, open_model, pipeline_for
from flows.core.checkpoint.precision import PartSettings, attention, weight_bytes
from flows.core.job.away import AwayMedia, unread_sources
from flows.core.job.card_sampling import with_card_sampling
from flows.core.job.job_file import JobFile
from flows.core.job.media_digests import check_beside, inode_note, read_contents, unfetched_note
from flows.core.job.pass_mode import answering, with_pass_mode
from flows.core.job.young_files import files_by_age
from flows.core.ledger.ledger import Ledger
from flows.core.ledger.namespaces import notes, variants_of
from flows.core.ledger.prompts import Prompts, check_fixed_texts, check_summary, command_prompt
from flows.core.ledger.tasks import Medium
from flows.core.machine.budget import Budget, budget_on, check_device
from flows.core.machine.gpus import select_devices
from flows.core.machine.launch import Launcher
from flows.core.media.media_file import MediaFile, Selection
from flows.core.media.remote_digests import Progress
from flows.core.media.sources import find_media, why_no_media
from flows.core.options.commands import RunOptions
from flows.core.options.formats import ANSWERED, ANSWERS
from flows.core.options.media import ON, SoundOptions
from flows.core.options.model import DEMO_MODEL, GpuOptions, is_served
from flows.core.options.packages import check_packages
from flows.core.options.text import FolderOptions
from flows.core.pipelines import CAPTION, Pipeline, parts_of, purposes, with_extras, with_hearing
from stages.embed import MIN_COSINE
from stages.models.hub.quantized import refuse_unread
from stages.models.hub.resolve import check_name
from stages.models.hub.transfer import Announce
from stages.process.checks import FP16, Verdicts

NOT_USED = "sound is not used: "
"""Beginning of the note why a run leaves out the sound that its model could hear."""


def sound_note(model: Model) -> str:
    """Return that note of a run's model; empty: there is none."""
    return next((note for note in model.notes if note.startswith(NOT_USED)), "")


def pipeline_with_sound(
    config: RunOptions, model: Model, pipeline: Pipeline, files: Iterable[MediaFile] | None = None
) -> tuple[Pipeline, Model]:
    """Return the pipeline, with the stages for sound if this run uses it. Else the model's profile
    hears nothing, and a note says why if it could. `files`: those of the run; None: any. Raises
    UsageError for `--sound on` and `--sound-track` where that is not possible."""
    options = config.groups.sound
    clips = WITH_SOUND.intersection(config.groups.outputs.format)  # have the track in any case
    track = "--sound-track" * bool(options.sound_track and not clips)
    option = "--sound on" if options.sound == ON else track
    deaf = replace(model, profile=replace(model.profile, hearing=None))
    if options.sound == OFF:
        return pipeline, deaf
    reason, hint = _obstacle(config, model, pipeline)
    if reason and option:
        raise UsageError(f"{option}: {reason}", hint=hint)
    videos = files is None or any(file.kind == "video" for file in files)
    if not reason and videos:
        _check_chunk(config, model)
        return with_hearing(pipeline), model
    notes = (f"{NOT_USED}{reason}",) if model.profile.hearing and videos else ()
    return pipeline, replace(deaf, notes=(*model.notes, *notes))


def _check_chunk(config: RunOptions, model: Model) -> None:
    """Raise UsageError if chunks are longer than the sound that the model takes at once."""
    hearing, video = model.profile.hearing, config.groups.video
    clips = model.sampling(config).chunk_seconds if video.clip_frames else None
    seconds = clips or video.chunk
    if hearing and seconds and 0 < hearing.max_seconds < seconds:
        option = f"--clip-frames {video.clip_frames} ({seconds:.1f} s)"
        raise UsageError(
            f"{option if clips else f'--chunk {seconds:g}'}: {model.name} hears "
            f"{hearing.max_seconds:g} s at once",
            hint=f"Give {'fewer' if clips else f'--chunk {hearing.max_seconds:g}'}, or --sound off",
        )


def _obstacle(config: RunOptions, model: Model, pipeline: Pipeline) -> tuple[str, str]:
    """Return why a run cannot use sound, and what to do; empty if it can."""
    if model.served is not None:
        return "a server is sent pictures only", "Leave out --sound"
    if model.profile.hearing is None:
        hint = "Leave it out, or choose a model that hears: docs/models.md names them"
        if config.groups.sound.sound_track:
            hint += f". For the sound of clips, name --format {' or '.join(sorted(WITH_SOUND))}"
        return f"{model.name} hears nothing (it has no audio encoder)", hint
    if with_hearing(pipeline) == pipeline or not isinstance(config, SoundOptions):
        return "this command does not use it yet", "Leave out --sound"
    hearing = model.profile.hearing
    if config.groups.video.whole and hearing and hearing.max_seconds:
        longest = f"{hearing.max_seconds:g} s"
        hint = f"Leave out --whole, or give --sound off: chunks of {longest} or less have sound"
        return f"it hears {longest} at once, and with --whole a chunk may be longer", hint
    if any(settings.gguf for settings in model.settings["language"]):
        hint = "Leave out --sound, or --language-gguf"
        return "llama.cpp runs the language half, which is given pictures only", hint
    if any(settings.graph for part in model.settings.values() for settings in part):
        return "graphs compute this model, which were traced without sound", "Leave out --sound"
    return "", ""


def with_vector_precision(config: RunOptions, model: Model, store: Store, device: str) -> Model:
    """Return the model with fp16 first if a check has shown that it holds, or with the check to
    make, or with a note on why it runs in fp32. Without a verdict, what is stored decides."""
    if model.served is not None:
        return model
    best = model.best("vision")
    concerned = model.profile.route == "dual" and config.precision_of("vision") == "auto"
    if device == "cpu" or not concerned or best.graph or best.precision != "fp32":
        return model
    half = model.profile.vision
    fp16 = replace(
        best,
        precision="fp16",
        dtype="float16",
        attention=attention(half, "float16", device),
        weight_bytes=weight_bytes(half, "fp16", "float16"),
    )
    digest = model.half_digest("vision", fp16)
    outcome = Verdicts(store, device).outcome(FP16, {"half": digest})
    if outcome is not None and not outcome["holds"]:
        cosine = f"{outcome['cosine']:.6f}"
        return _in_fp32(model, f"in fp16 the cosine to fp32 is {cosine}, below {MIN_COSINE}")
    if outcome is None and not _has_vectors(store, model, fp16):
        if _has_vectors(store, model, best):
            reason = "the store has vectors of it in fp32; --precision fp16 makes others"
            return _in_fp32(model, reason)
        return replace(model, fp16_check=digest)
    vision = (fp16, *model.settings["vision"][1:])
    return replace(model, settings={**model.settings, "vision": vision})


def _in_fp32(model: Model, reason: str) -> Model:
    note = f"the vision half runs in fp32 ({reason})"
    return replace(model, notes=(*model.notes, note))


def _has_vectors(store: Store, model: Model, settings: PartSettings) -> bool:
    """Return whether the store has vectors of this half with these settings."""
    about, key_fields = notes(store), settings.key_fields
    return any(
        namespace in about
        and about.meta(namespace)["weights"] == model.digests["vision"]
        and about.meta(namespace).get("computing") == key_fields
        and len(RecordSet(store, "embeddings", namespace)) > 0
        for namespace in stored_namespaces(store, "embeddings")
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A resolved command: all that is known before the first stage starts."""

    config: RunOptions
    pipeline: Pipeline
    """Stages that read media."""
    one_shot_stages: Pipeline
    """Stages that run once."""
    store: Store
    model: Model
    devices: tuple[str, ...]
    """`cpu`, or one `cuda:N` or more, which are equal."""
    budget: Budget
    """Memory budget of a stage, as measured when the run began."""
    sampling: Sampling
    files: tuple[JobFile, ...] = ()
    """Files that are readable or away, in source order, each once per prompt."""
    failures: tuple[Failure, ...] = ()
    """Sources that cannot be read, and why."""
    ledger: Ledger
    edits: EditsInForce
    """User corrections of outputs that earlier runs wrote, in this folder or others."""
    answers: StoredAnswers
    """Answers to the questions of a run of captions."""
    notes: tuple[str, ...] = ()
    """Notes for the user on how sources were read and how text is sampled."""
    before: frozenset[str] = frozenset()
    """Digests of the media that have rows of an earlier run in the folder."""

    @property
    def device(self) -> str:
        """Return the device of all stages that run in one process."""
        return self.devices[0]

    @property
    def out(self) -> Path:
        return out_folder(self.config)

    @property
    def stages(self) -> Pipeline:
        return (*self.pipeline, *self.one_shot_stages)

    @property
    def by_file(self) -> list[list[JobFile]]:
        """Return the files. Entries of one file under several prompts form one group."""
        return [list(group) for _, group in groupby(self.files, lambda f: f.file.identity)]

    @property
    def media(self) -> list[Medium]:
        """Return each content once, in source order, from a file that is there if there is one."""
        files = [*self.files, *(file for file in self.files if not file.away)]
        return list({(f.medium.digest, f.medium.prompt): f.medium for f in files}.values())

    @property
    def requested(self) -> int:
        """Return the number of files and of sources that cannot be read."""
        return len(self.by_file) + unread_sources(self.failures, self.files)


class NothingToDo(UsageError):
    """The error when no source can be used. `failures` gives the reason for each. The exit code is
    that of an environment fault if no server of any source responds."""

    def __init__(
        self, pipeline: Pipeline, failures: Sequence[Failure], sources: Sequence[str] = ()
    ) -> None:
        self.failures = tuple(failures)
        if not failures:
            message = f"the list of sources is empty: {first_of(sources)}"
            super().__init__(message, hint="Give files or folders")
            return
        if all(failure.error == UNREACHABLE for failure in failures):
            self.exit_code = EnvironmentFault.exit_code
        first = failures[0]
        more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        what = next((name for name, of in purposes().items() if pipeline in of), pipeline[-1].name)
        message = f"nothing to {what}: {first.media_path}: {first.message}{more}"
        super().__init__(message, hint=first.hint)


def check_names(config: RunOptions, pipeline: Pipeline) -> None:
    """Refuse sources that name no medium, and a model that is neither a folder nor a hub id, before
    a run begins in the background. Sends no request. Raises UsageError."""
    config.check_sources()
    selection = Selection(recursive=config.recursive, extensions=config.extensions)
    if failures := why_no_media(config.sources, selection):
        raise NothingToDo(pipeline, failures)
    if config.model not in ("", DEMO_MODEL) and not is_served(config.model):
        check_name(config.model)


def media_of(config: RunOptions) -> tuple[list[MediaFile], list[Failure]]:
    """Return the files that a command's sources name, and the sources that were not found."""
    selection = Selection(recursive=config.recursive, extensions=config.extensions)
    prompt_for, names = partial(command_prompt, config), config.groups.prompts.prompts
    return find_media(config.sources, selection, config.limit, prompt_for, names)


def prepare(
    config: RunOptions,
    launcher: Launcher,
    announce: Announce | None = None,
    *pipelines: Pipeline,
    progress: Progress | None = None,
    dry: bool = False,
    alone: bool = False,
    left_out: Set[str] = frozenset(),
) -> Job:
    """Return everything a run must know before it starts a stage. The job takes the first of
    `pipelines` that suits its model (default: captions); with `alone`, only its best variant. Files
    whose place is in `left_out` are not part of it. `announce` is called for slow steps, and
    `progress` while media are downloaded. With `dry`, no medium is downloaded, and weights are read
    as without `read_weights` of `open_model`. Raises PenstockError."""
    pipelines = with_extras(pipelines or (CAPTION,), summary=config.groups.prompts.summary)
    config.check_sources()
    check_packages(config)
    if config.model and (folder := Path(config.model).expanduser()).is_dir():
        refuse_unread(config.model, folder)
    store, (files, failures) = open_store(config.store_url), media_of(config)
    by_age = files_by_age((f for f in files if f.place not in left_out), config.min_age, config.out)
    files, away = by_age.resting, AwayMedia(config, by_age.resting, failures, left_out)
    if left_out and not files and not by_age.young and not failures:
        raise all_left_out(config)
    if not files and not away:  # reported before a model is resolved or downloaded
        raise by_age.nothing_yet(failures) or NothingToDo(pipelines[0], failures, config.sources)
    check_beside(files, config)
    prepare_store(store)
    check_devices(config, store)
    model, pipeline, digests = model_for(
        config, launcher, store, pipelines, announce, files=files, read_weights=not dry
    )
    if alone:
        model = model.of_parts(model.settings, alone=True)
    if model.served is not None and any(file.kind == "video" for file in files):
        model = model.serving(model.served.with_video_support(store, announce))
    readable, unreadable = read_contents(
        files, digests, store, progress, fetch=not dry, again=config.check_media
    )
    prompts = Prompts(config, model, store)
    job_files = tuple(
        JobFile(file=file, medium=replace(job_file.medium, prompt=prompt))
        for job_file in readable
        for file, prompt in prompts.of(job_file.file, job_file.medium.digest)
    )
    failures = [*failures, *unreadable, *prompts.failures.values()]
    media_away = away.media(files, readable)
    failures = away.failures(media_away, failures)
    if not job_files and not media_away:
        raise NothingToDo(pipeline, failures)
    check_summary(config, model)
    base = _job_of(config, store, model, pipeline)
    notes = [*base.notes, *prompts.notes(), *filter(None, [by_age.note])]
    notes += unfetched_note(readable) if dry else []
    notes += [] if config.check_media else inode_note(readable)
    job_files = away.job_files(media_away, job_files, base.ledger)
    notes += away.gone_note(job_files, pipeline[-1].writes)
    base = replace(base, files=job_files, failures=(*failures,), notes=(*notes,))
    return replace(base, before=away.contents)


def all_left_out(config: RunOptions) -> UsageError:
    """Return the error of a run whose conditions no file meets."""
    by, place = ("--keep", ANSWERED) if config.groups.answers.keep else ("--sift", "sift")
    return UsageError(f"no file meets {by}", hint=f"Read {place}/left_out.jsonl in --out")


def prepare_without_media(config: RunOptions, launcher: Launcher, *pipelines: Pipeline) -> Job:
    """Return the job of a run that reads no media and has only one-shot stages, or of a server.
    Raises PenstockError."""
    check_packages(config)
    store = open_store(config.store_url)
    prepare_store(store)
    check_devices(config, store)
    model, pipeline, _ = model_for(config, launcher, store, pipelines)
    return _job_of(config, store, model, pipeline)


def check_devices(config: RunOptions, store: Store) -> None:
    """Test that each device of a run can compute, before any download or decoding. Raises
    EnvironmentFault."""
    for device in select_devices(config.groups.gpus.gpus).devices:
        check_device(device, store)


def model_for(
    config: RunOptions,
    launcher: Launcher,
    store: Store,
    pipelines: Sequence[Pipeline],
    announce: Announce | None = None,
    *,
    files: Iterable[MediaFile] | None = None,
    read_weights: bool = True,
) -> tuple[Model, Pipeline, ContentDigests]:
    """Return the model of a run, the pipeline that suits it and its `files`, and the known
    digests. The store is prepared."""
    device = select_devices(config.groups.gpus.gpus).devices[0]
    digests = digests_in(store)
    model = open_model(
        config,
        *pipelines,
        store=store,
        digests=digests,
        launcher=launcher,
        device=device,
        announce=announce,
        read_weights=read_weights,
    )
    pipeline, model = pipeline_with_sound(config, model, pipeline_for(model, pipelines), files)
    model = with_vector_precision(config, model, store, device)
    model = with_pass_mode(config, model, store, device)
    if any(stage.uses_token_limit for stage in pipeline):
        check_fixed_texts(config, model)
    # If no stage loads weights, the notes of a store still record the model.
    model = model.of_parts(parts_of(pipeline) or model.settings)
    if config.groups.vectors.tiles == OFF and any(stage.shrinks for stage in pipeline):
        fit = replace(model.profile.fit_image, shrinks=True)
        model = replace(model, profile=replace(model.profile, fit_image=fit))
    return model, pipeline, digests


def _job_of(config: RunOptions, store: Store, model: Model, pipeline: Pipeline) -> Job:
    config, notes = with_card_sampling(config, model.folder)
    start = config.groups.generation.start_with
    if start != start.rstrip():
        notes += [
            f"--start-with {start!r} ends with a blank: tokenizers usually join it with the "
            "next word, so captions may go on oddly; leave it out"
        ]
    over_media = tuple(stage for stage in pipeline if stage.of_media)
    sampling, last = model.sampling(config), over_media[-1]
    selection = select_devices(config.groups.gpus.gpus)
    shares_work = isinstance(config, GpuOptions) and model.served is None
    stored = stored_namespaces(store, last.writes) if last.uses_token_limit else set()
    variants = (
        variants_of(config, m, sampling, over_media, stored) for m in answering(config, model)
    )
    opens = model.profile.opens_reasoning
    ledger = Ledger(store, over_media, *chain.from_iterable(variants), opens_reasoning=opens)
    return Job(
        config=config,
        pipeline=over_media,
        one_shot_stages=tuple(stage for stage in pipeline if not stage.of_media),
        store=store,
        model=model,
        devices=selection.devices,
        budget=budget_on(config, selection.devices),
        sampling=sampling,
        edits=EditsInForce(
            out_folder(config),
            store.local,
            anybody if config.groups.trust.trust_folder else proof_by(store.url),
        ),
        answers=StoredAnswers(out_folder(config) / ANSWERED / ANSWERS),
        notes=(*notes, *filter(None, [selection.note if shares_work else ""])),
        ledger=ledger,
    )


def out_folder(config: FolderOptions) -> Path:
    """Return the absolute path of a run's output folder. Raises UsageError."""
    return folder_named(config.out, "out")
