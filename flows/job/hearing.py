"""Decides whether a run captions what is heard in its videos, too."""

from collections.abc import Iterable
from dataclasses import replace

from artifacts.errors import UsageError
from artifacts.tiles import OFF
from flows.checkpoint.models import Model
from flows.media.media_files import MediaFile
from flows.options.commands import RunOptions
from flows.options.media import ON, SoundOptions, VideoSamplingOptions
from flows.pipelines import Pipeline, with_hearing

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
    options = SoundOptions.of(config)
    option = "--sound on" if options.sound == ON else "--sound-track" * bool(options.sound_track)
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
    """Raise UsageError if `--chunk` is longer than the sound that the model takes at once."""
    hearing, chunk = model.profile.hearing, VideoSamplingOptions.of(config).chunk
    if hearing and chunk and 0 < hearing.max_seconds < chunk:
        raise UsageError(
            f"--chunk {chunk:g}: {model.name} hears {hearing.max_seconds:g} s at once",
            hint=f"Give --chunk {hearing.max_seconds:g}, or --sound off",
        )


def _obstacle(config: RunOptions, model: Model, pipeline: Pipeline) -> tuple[str, str]:
    """Return why a run cannot use sound, and what to do; empty if it can."""
    if model.served is not None:
        return "a server is sent pictures only", "Leave out --sound"
    if model.profile.hearing is None:
        hint = "Leave it out, or choose a model that hears: docs/models.md names them"
        return f"{model.name} hears nothing (it has no audio encoder)", hint
    if with_hearing(pipeline) == pipeline or not isinstance(config, SoundOptions):
        return "this command does not use it yet", "Leave out --sound"
    hearing = model.profile.hearing
    if VideoSamplingOptions.of(config).whole and hearing and hearing.max_seconds:
        longest = f"{hearing.max_seconds:g} s"
        hint = f"Leave out --whole, or give --sound off: chunks of {longest} or less have sound"
        return f"it hears {longest} at once, and with --whole a chunk may be longer", hint
    if any(settings.gguf for settings in model.settings["language"]):
        hint = "Leave out --sound, or --language-gguf"
        return "llama.cpp runs the language half, which is given pictures only", hint
    if any(settings.graph for part in model.settings.values() for settings in part):
        return "graphs compute this model, which were traced without sound", "Leave out --sound"
    return "", ""
