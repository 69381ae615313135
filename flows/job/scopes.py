"""Digests of all that decides what each stage makes, and of other ways in which it may have been
made before; knows no chunk."""

from collections.abc import Iterator, Set
from dataclasses import dataclass, field, replace

from artifacts.keys import digest_of
from artifacts.schema import FrameFit, Sampling
from flows.job.config import CaptionConfig
from flows.job.models import Model
from flows.pipelines import DECODE, ENCODE, FRAMES

LARGEST_LIMIT = 2048
"""Captions of up to so many tokens are looked for when another limit is asked for: to try them all
takes 10 ms."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scopes:
    """Digests of all that decides a stage's bytes except the chunk itself."""

    frames: str
    features: str
    captions: str
    prompted: bool = False
    """Whether features are made of the prompt too, so that another prompt has others."""
    vision: str = ""
    """What the vision half computes in, for people."""
    language: str = ""
    """What the language half computes in."""
    limit: int = 0
    """Tokens of a caption at the most."""
    fit_image: FrameFit = field(default_factory=FrameFit)
    """The size at which pictures are seen."""

    @property
    def precision(self) -> dict[str, str]:
        return {"vision": self.vision, "language": self.language}


def ways_of(
    config: CaptionConfig, model: Model, sampling: Sampling, stored: Set[str]
) -> list[Scopes]:
    """The scopes of every pair of settings that the halves may be run in, the best first, each
    before those of its captions among the `stored` that have another limit."""
    found = []
    for vision in model.settings("vision"):
        for language in model.settings("language"):
            way = replace(model, vision=vision, language=language)
            scopes = scopes_of(config, way, sampling)
            found += [scopes, *_other_limits(scopes, way, stored)]
    return found


def scopes_of(config: CaptionConfig, model: Model, sampling: Sampling) -> Scopes:
    """Digests of what decides each stage's bytes; a stage's RECIPE rises when its own output
    changes."""
    fits = {kind: model.fit(kind).long_edges for kind in ("video", "image")}
    looked_at = {name: getattr(sampling, name) for name in sampling.__slots__}
    frames = digest_of(["frames", FRAMES.recipe, looked_at, fits])
    seen_by = [model.vision_digest, *model.vision.decides]
    features = digest_of(["features", ENCODE.recipe, frames, *seen_by])
    return Scopes(
        frames=frames,
        features=features,
        captions=_captions(features, model, config.max_new_tokens),
        prompted=model.card.prompted,
        limit=config.max_new_tokens,
        fit_image=model.fit("image"),
        **model.precision(),
    )


def _captions(features: str, model: Model, limit: int) -> str:
    by = [model.language_digest, *model.language.decides]
    return digest_of(["captions", DECODE.recipe, features, *by, limit])


def _other_limits(scopes: Scopes, model: Model, stored: Set[str]) -> Iterator[Scopes]:
    """A digest cannot be turned back, so every limit that may have been asked for is tried."""
    if not stored - {scopes.captions}:
        return
    for limit in range(1, LARGEST_LIMIT + 1):
        captions = _captions(scopes.features, model, limit)
        if limit != scopes.limit and captions in stored:
            yield replace(scopes, captions=captions, limit=limit)
