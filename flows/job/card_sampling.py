"""Takes sampling settings and the system turn from a checkpoint's model card.

`--sampling checkpoint` is completed from the card if generation_config.json lacks values.
`--sampling-as-card` takes the frame sampling and the system turn from the card.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from artifacts.errors import UsageError
from artifacts.plurals import counted
from artifacts.schema import Sampling
from flows.checkpoint.models import Model
from flows.options.commands import CaptionConfig, RunOptions
from flows.options.media import CardOptions, VideoSamplingOptions
from stages.decode.generation import CHECKPOINT, SAMPLING_FIELDS, SamplingParams
from stages.models.hub.checkpoint import GENERATION, read_config
from stages.models.published import FamilyFacts, facts_of

C = TypeVar("C", bound=RunOptions)


def as_card(config: C, model: Model) -> C:
    """Return the configuration with values from the model card for options that the command does
    not set. Raises UsageError if none is known for the model's family."""
    if not isinstance(config, CaptionConfig) or not config.sampling_as_card:
        return config
    family, facts = _family(model)
    if facts.fps is None and facts.frames is None and facts.system is None:
        raise UsageError(
            f"--sampling-as-card: neither frames nor a system turn of {family} is known, "
            f"{_known(facts)}",
            hint="Give --fps or --frames, and --system, as the model's card says",
        )
    fps, frames, max_frames = config.fps, config.frames, config.max_frames
    if fps is None and frames is None:
        fps, frames = facts.fps, facts.frames if facts.fps is None else None
    if config.frames is None:
        max_frames = max_frames or facts.frames
    system = config.system
    if model.profile.takes_system:
        system = system or facts.system or ""
    return replace(config, fps=fps, frames=frames, max_frames=max_frames, system=system)


def sampling_as_card(config: RunOptions, model: Model) -> Sampling:
    sampling = model.sampling(config)
    card, video = CardOptions.of(config), VideoSamplingOptions.of(config)
    if not card.sampling_as_card or video.shots:  # the end of a shot comes after its frames
        return sampling
    return replace(sampling, last_frame=_family(model)[1].last_frame)


def card_source(config: RunOptions, model: Model) -> str:
    """Return where the model's authors state these values; empty without the option."""
    return _family(model)[1].source if CardOptions.of(config).sampling_as_card else ""


def card_note(config: RunOptions, model: Model) -> str:
    """Return a note on the values from the card; empty without the option."""
    if not CardOptions.of(config).sampling_as_card:
        return ""
    facts, sampling = _family(model)[1], sampling_as_card(config, model)
    if sampling.fps is not None:
        rate = f"{sampling.fps:g} frames a second, at most {sampling.max_frames} a chunk"
    else:
        rate = f"{counted(sampling.frames or 0, 'frame')} a chunk"
    parts = [f"{rate}, from the first to the last one" if sampling.last_frame else rate]
    if facts.last_frame and VideoSamplingOptions.of(config).shots:
        parts.append("--shots leaves the last frame out")
    if facts.system and not model.profile.takes_system:
        parts.append("the chat template takes no system turn, so the card's is left out")
    elif facts.system:
        parts.append(f"system turn “{SamplingParams.of(config).system}”")
    return f"sampling as card: {'; '.join(parts)} ({facts.source})"


def _family(model: Model) -> tuple[str, FamilyFacts]:
    """Return the `model_type` of a checkpoint, and the known facts about it."""
    family = str(read_config(model.folder).get("model_type", ""))
    return family or model.name, facts_of(family)


def _known(facts: FamilyFacts) -> str:
    """Return what is known about a family, for display."""
    known = [f"a context of {facts.context:,} tokens"] if facts.context else []
    if facts.sampling:
        values = ", ".join(f"{name} {value:g}" for name, value in facts.sampling.items())
        known.append(f"sampling parameters ({values})")
    return f"only {' and '.join(known)}" if known else "nor anything else"


PRESENCE = "presence_penalty"


def with_card_sampling(config: C, folder: Path) -> tuple[C, list[str]]:
    """Return the configuration with sampling values from the model card of the checkpoint in a
    folder, and notes for the user. Options and generation_config.json take precedence. Raises
    UsageError."""
    if not isinstance(config, CaptionConfig) or config.sampling != CHECKPOINT:
        return config, []
    facts = facts_of(str(read_config(folder).get("model_type", "")))
    stated = read_config(folder, GENERATION)
    if config.presence_penalty is None and isinstance(stated.get(PRESENCE), int | float):
        try:
            config = replace(config, presence_penalty=float(stated[PRESENCE]))  # not in `generate`
        except UsageError as error:
            raise UsageError(
                f"{folder / GENERATION}: presence_penalty is {stated[PRESENCE]}",
                hint="Give --presence-penalty, from -2 to 2",
            ) from error
    added = {
        name: value
        for name, value in _missing(stated, facts.sampling).items()
        if getattr(config, name) is None
    }
    if not added:
        return config, []
    options: Any = added
    named = ", ".join(f"{name} {value:g}" for name, value in added.items())
    note = (
        f"--sampling checkpoint: {GENERATION} lacks {named}, which the model's authors "
        f"state ({facts.source})"
    )
    return replace(config, **options), [note]


def _missing(stated: Mapping[str, Any], card: Mapping[str, float]) -> dict[str, float]:
    """Return the values that a card adds to those of a checkpoint. If a value differs, the card
    describes another checkpoint of the family, such as one without thinking, and adds nothing."""
    set_values = {name: stated[name] for name in SAMPLING_FIELDS if stated.get(name) is not None}
    if any(name in card and card[name] != value for name, value in set_values.items()):
        return {}
    samples = stated.get("do_sample")
    if samples is None:
        samples = card.get("temperature", 0.0) > 0
    names = [*(SAMPLING_FIELDS if samples else ()), PRESENCE]
    found = {n: card[n] for n in names if n in card and stated.get(n) is None}
    if not found.get(PRESENCE):
        found.pop(PRESENCE, None)
    return {n: int(v) if n == "top_k" else float(v) for n, v in found.items()}
