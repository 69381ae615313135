"""Says how the context of a model bounds the frames of a chunk; opens no file."""

from artifacts.schema import Sampling
from artifacts.words import counted
from flows.job.config import CaptionConfig
from flows.job.context import frames_of_any_size, frames_of_size
from flows.job.models import Model
from flows.job.tasks import Task
from flows.job.wanted_frames import full_chunk, wanted_sampling
from stages.models.profile import ModelProfile


def context_note(model: Model, config: CaptionConfig) -> str:
    """Return how many frames of a chunk the context holds where it does not hold all of them, or
    that nobody knows; else nothing."""
    profile = model.profile
    if profile.route == "dual" or profile.is_encoder_decoder:
        return ""
    if not profile.context_tokens:
        return f"{model.name} does not say how long its context is: it bounds no frames"
    sampling, most = wanted_sampling(profile, config), frames_of_any_size(profile)
    wanted = full_chunk(sampling)
    if not most or wanted <= most:
        return ""
    context = f"its context of {profile.context_tokens:,} tokens"
    if config.as_published is False:
        return (
            f"{model.name}: {counted(wanted, 'frame')} of a chunk exceed {context}, in which "
            f"{most} fit; as stock all are shown"
        )
    fit = "frame of a chunk fits" if most == 1 else "frames of a chunk fit"
    return f"{model.name}: {most:,} {fit} {context}, of {wanted:,}; {_remedy(sampling, most)}"


def beyond_context(profile: ModelProfile, config: CaptionConfig, task: Task) -> str:
    """Return that the frames of a chunk exceed the context, where they are shown as stock; else
    nothing."""
    if config.as_published is not False or task.medium.kind != "video":
        return ""
    shown = len(task.chunk.times)
    most = frames_of_size(profile, (task.chunk.height, task.chunk.width))
    if most is None or shown <= most:
        return ""
    return (
        f"its {counted(shown, 'frame')} exceed the model's context of "
        f"{profile.context_tokens:,} tokens, in which {most:,} fit"
    )


def _remedy(sampling: Sampling, most: int) -> str:
    """Return what shows more frames."""
    if sampling.fps and sampling.min_frames <= most:
        return f"--chunk {most / sampling.fps:g} shows them all"
    return "shorter chunks (--chunk) show more"
