"""Builds a model's profile from its configuration, processor and headers. Reads no weights.

A process of its own describes the model, so that the parent need not import torch.
"""

import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import nn

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.schema import HalfName, MediaKind, Modality, Part
from stages.models.dry_run import DryRun, dry_run, vector_width
from stages.models.half_job import DescribeJob
from stages.models.halves.boundary import (
    HALVES,
    absent_paths,
    belongs_to,
    hears,
    makes_vectors,
    modules_called,
)
from stages.models.halves.generate import ON_HOST
from stages.models.halves.load import lacks_tensors, refuse_pickle
from stages.models.halves.model_class import config_and_class, skeleton_of
from stages.models.halves.own_code import own_code
from stages.models.halves.split_route import RouteChoice, choose_route, depends_on_prompt
from stages.models.hub.checkpoint import refuse_impossible
from stages.models.hub.headers import Header, read_headers
from stages.models.hub.resolve import find_model
from stages.models.precision.quantize import check_stored, linears_of, quantizable
from stages.models.precision.weights import (
    Weight,
    attention_of,
    has_codes,
    supports_flash,
    weights_of,
)
from stages.models.processors.images import prepare_images
from stages.models.processors.input_layout import channels_of, layout_of, try_processor
from stages.models.processors.input_sizes import LONG_EDGES, Probe, black, pixels_per_video, probe
from stages.models.processors.loading import control_tokens, load_processor, takes_videos
from stages.models.processors.pixel_limit import bounds_of, min_pixels_of
from stages.models.processors.placeholders import placeholder_tokens
from stages.models.processors.prepare import (
    answer_blank,
    continues_prompt,
    opens_reasoning,
    prepare,
    prompt_overhead,
)
from stages.models.processors.processor_calls import TEMPLATED, Layout, system_form
from stages.models.processors.side_inputs import hearing_profile
from stages.models.profile import AdaptableLayer, ModelProfile, PartProfile, SamplingProfile
from stages.models.protocols import Processor
from stages.models.published import with_published_facts
from stages.models.stored.layer_names import stored_layers
from stages.models.stored.layers import kind_of, packable, split_targets
from stages.models.stored.layouts import StoredLayer
from stages.process.deferred_imports import import_transformers
from stages.process.events import EventReporter
from stages.process.exit_diagnosis import out_of_memory
from stages.process.job import JobFields, gc_frozen, parse_job

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LAYER = re.compile(r"(?P<stack>[^0-9]*)\.\d+(?=\.)")
"""Pattern of a layer's path in the name of one of its weights."""


def halves_of(
    skeleton: "PreTrainedModel", headers: list[Header], *, hears: bool = False
) -> dict[Part, PartProfile]:
    halves: tuple[HalfName, ...] = (*HALVES, "audio") if hears else HALVES
    extra_modules: dict[Part, tuple[str, ...]] = {
        half: modules_called(skeleton, half) for half in halves
    }
    absent = {half: absent_paths(skeleton, half, extra_modules[half]) for half in halves}
    held: dict[Part, list[Weight]] = {half: [] for half in halves}
    layers, weights = _stored(skeleton, headers)
    for weight in weights:
        for half in belongs_to(weight.path, absent):
            held[half].append(weight)
    if not held["vision"]:
        raise UsageError(
            f"the checkpoint of this {type(skeleton).__name__} holds no weights of a vision half",
            hint="Choose the whole vision-language checkpoint, not its text part",
        )
    _refuse_other_tensors(skeleton, headers, weights)
    own: dict[Part, list[AdaptableLayer]] = {half: [] for half in halves}
    for layer in _adaptable(skeleton, weights):
        # Layers in both halves belong to the vision half: features are computed with them.
        of = [half for half in HALVES if half in belongs_to(layer.path, absent)]
        own[of[0] if of else halves[-1]].append(layer)
    return {
        half: replace(
            _part_profile(skeleton, half, part_weights, layers),
            extra_modules=extra_modules[half],
            adaptable=tuple(own[half]),
        )
        for half, part_weights in held.items()
    }


def _stored(
    skeleton: "PreTrainedModel", headers: list[Header]
) -> tuple[dict[str, StoredLayer], list[Weight]]:
    """Return the layers that another program quantized, and all weights. Raises UsageError."""
    layers = stored_layers(skeleton, headers)
    weights = weights_of(skeleton, headers, layers)
    kinds = {weight.kind for weight in weights if weight.kind}
    check_stored(skeleton.config, kinds, plain=not (kinds or has_codes(headers)))
    return layers, weights


def _refuse_other_tensors(
    skeleton: "PreTrainedModel", headers: list[Header], weights: list[Weight]
) -> None:
    """Refuse files whose tensors are not those of the model: some that transformers would report as
    newly initialized are missing, layers are left over, or shapes differ. One stored tensor may
    become several of the model; those are compared when they are loaded. Raises EnvironmentFault.
    """
    split = _any_of(split_targets(skeleton))
    missing_ok = _any_of(skeleton._keys_to_ignore_on_load_missing)
    expected = skeleton.state_dict().keys() - skeleton.all_tied_weights_keys.keys()
    missing = expected - {weight.path for weight in weights}
    lacking = sorted(n for n in missing if not (split.search(n) or missing_ok.search(n)))
    if lacking:
        raise lacks_tensors("the checkpoint", "model", lacking)
    _refuse_left_over(skeleton, headers, weights)
    plain = {w.name: w.path for w in weights if not (w.kind or split.search(w.path))}
    parameters = dict(skeleton.named_parameters())
    for header in headers:
        if (path := plain.get(header.name)) in parameters:
            shape = tuple(parameters[path].shape)
            if header.shape != shape:
                raise EnvironmentFault(
                    f"{header.name} of the checkpoint has the shape {list(header.shape)}, and the "
                    f"model takes {list(shape)}",
                    hint="Download it again: its files and its config.json belong together",
                )


def _refuse_left_over(
    skeleton: "PreTrainedModel", headers: list[Header], weights: list[Weight]
) -> None:
    """Refuse files with more layers than config.json states, which transformers would leave out.
    Layers of another kind than the first, which predict several tokens, may be left out. Raises
    EnvironmentFault."""
    used, names = {weight.name for weight in weights}, {header.name for header in headers}
    ignored = _any_of(skeleton._keys_to_ignore_on_load_unexpected)
    layers: dict[tuple[str, str], set[str]] = {}
    for name in names - used:
        if (match := IN_LAYER.match(name)) and not ignored.search(name):
            layers.setdefault((match[1], match[2]), set()).add(match[3])
    for (stack, number), endings in layers.items():
        if {f"{stack}.0.{ending}" for ending in endings} <= used:
            raise EnvironmentFault(
                f"the checkpoint holds {stack}.{number}, and its config.json states fewer layers",
                hint="Download it again: its files belong to different versions",
            )


def _any_of(patterns: Iterable[str] | None) -> re.Pattern[str]:
    """Return a pattern that any of these finds; without any, it finds nothing."""
    return re.compile("|".join(f"({pattern})" for pattern in patterns or ()) or "(?!)")


def _adaptable(skeleton: "PreTrainedModel", weights: list[Weight]) -> list[AdaptableLayer]:
    """Return the linear layers of a model, with their names in the model and in the files."""
    ending = ".weight"
    stored = {w.path: w.name for w in weights if w.name.endswith(ending)}
    layers = []
    for path, module in linears_of(skeleton).items():
        rows, columns = module.weight.shape
        if not isinstance(module, nn.Linear):  # Conv1D stores its weight transposed
            rows, columns = columns, rows
        name = stored.get(f"{path}{ending}", "").removesuffix(ending)
        layers.append(AdaptableLayer(path, name, rows, columns))
    return layers


def undivided(skeleton: "PreTrainedModel", headers: list[Header]) -> dict[Part, PartProfile]:
    """Make the profiles of a model without a boundary: the second stage loads the whole model."""
    nothing = PartProfile(shards=(), tensors=(), parameters=0, stored_bytes=0)
    layers, weights = _stored(skeleton, headers)
    _refuse_other_tensors(skeleton, headers, weights)
    profile = _part_profile(skeleton, "whole", weights, layers)
    return {
        "vision": nothing,
        "language": replace(profile, adaptable=tuple(_adaptable(skeleton, weights))),
    }


def _part_profile(
    skeleton: "PreTrainedModel",
    half: Part,
    weights: list[Weight],
    layers: Mapping[str, StoredLayer],
) -> PartProfile:
    linears = quantizable(skeleton, half).values()
    stack = layers_of(weights)
    paths = {weight.path for weight in weights}
    of_half = {name: layer for name, layer in layers.items() if layer.path in paths}
    packed = [of_half[name] for name in packable(skeleton, of_half)]
    return PartProfile(
        shards=tuple(sorted({weight.shard for weight in weights})),
        tensors=tuple(sorted(weight.name for weight in weights)),
        parameters=sum(weight.parameters for weight in weights),
        stored_bytes=sum(weight.size for weight in weights),
        stored_as=kind_of(weight.kind for weight in weights if weight.kind),
        packed_parameters=sum(layer.rows * layer.columns for layer in packed),
        packed_bytes=sum(layer.packed_bytes for layer in packed),
        largest_packed=max((layer.rows * layer.columns for layer in packed), default=0),
        linear_modules=len(linears),
        linear_parameters=sum(linear.weight.numel() for linear in linears),
        linear_rows=sum(linear.weight.shape[0] for linear in linears),
        largest_linear=max((linear.weight.numel() for linear in linears), default=0),
        widest_linear=max((linear.weight.shape[0] for linear in linears), default=0),
        layers=len(stack),
        layer_parameters=max(stack.values(), default=0),
        stack_parameters=stack.total(),
        attention=attention_of(skeleton, half),
        flash=supports_flash(skeleton, half),
    )


def layers_of(weights: list[Weight]) -> Counter[str]:
    """Return the largest stack of layers: path of each layer → its number of parameters."""
    stacks: dict[str, Counter[str]] = {}
    for weight in weights:
        if match := LAYER.match(weight.path):
            stacks.setdefault(match["stack"], Counter())[match[0]] += weight.parameters
    return max(stacks.values(), key=Counter.total, default=Counter())


def default_sampling(processor: Processor) -> SamplingProfile:
    """Return the frame sampling that a processor states; empty if it takes no videos."""
    part = getattr(processor, "video_processor", None)

    def number(name: str, kind: Callable[[Any], Any]) -> Any:
        value = getattr(part, name, None)
        is_number = isinstance(value, int | float) and 0 < value < math.inf
        return (kind(value) or None) if is_number else None

    return SamplingProfile(
        fps=number("fps", float),
        frames=number("num_frames", int),
        min_frames=number("min_frames", int),
        max_frames=number("max_frames", int),
        seconds=number("chunk_seconds", lambda seconds: seconds),
    )


Load = Callable[[], Processor]
"""Loads the checkpoint's processor; each call makes a new one."""
logger = logging.getLogger(__name__)

EDGE = 64
"""Side length in pixels of the frames that test how a processor counts."""
IN_LAYER = re.compile(r"(.*?)\.(\d+)\.(.+)")
"""Name of a tensor of a layer: its stack, its number, and its name in the layer."""
FEW_AND_MANY = (2, 8)
"""Counts of those frames. Not one: encoders that take frames in pairs would duplicate it."""


def describe(
    path: str | Path,
    trust_remote_code: bool = False,
    revision: str | None = None,
    max_pixels: int = 0,
    max_video_pixels: int = 0,
    as_published: bool | None = None,
    today: str = "",
) -> ModelProfile:
    """Return the profile of the model at `path`, a folder or hub id.

    The pixel limits are part of the profile. `as_published` None: the rule decides. `today` is the
    date for templates that ask for one, as YYYY-MM-DD. Raises UsageError or EnvironmentFault."""
    folder = (checkpoint := find_model(path, revision)).folder
    limits: Any = {"max_pixels": max_pixels, "max_video_pixels": max_video_pixels}
    options = {"as_published": as_published, "today": today, **limits}
    load = partial(load_processor, folder, trust_remote_code, **options)

    # Resizing takes a second or two and a core, and so does importing a model's classes.
    with own_code(folder, trust_remote_code), ThreadPoolExecutor(1) as pool:
        probing = _start_probing(pool, folder, load)
        with gc_frozen():
            config, cls = config_and_class(folder, trust_remote_code)
        if not checkpoint.weights:
            refuse_pickle(folder, trust_remote_code)
        headers = read_headers(checkpoint)
        refuse_impossible(folder, len(headers))
        skeleton = skeleton_of(config, cls)
        if makes_vectors(cls):
            return _describe_dual(folder, headers, skeleton, load)
        profile = _describe_captioner(folder, headers, skeleton, probing, load)
        return with_published_facts(replace(profile, **limits), folder, as_published)


def _describe_dual(
    folder: Path, headers: list[Header], skeleton: "PreTrainedModel", load: Load
) -> ModelProfile:
    """Return the profile of a dual encoder, which processes images one by one."""
    choice = choose_route(skeleton)
    halves = halves_of(skeleton, headers)
    processor = load()
    width = vector_width(skeleton, processor)
    dry = dry_run(skeleton, processor, choice.route)
    seen = probe(load(), "image", prepare_images)
    return ModelProfile(
        **_common_fields(folder, skeleton, choice, seen, seen),
        modalities=("image",),
        parts=_with_costs(halves, dry),
        sampling=SamplingProfile(),
        feature_width=width,
        batch_costs_unknown=dry.why,
    )


def _common_fields(
    folder: Path, skeleton: "PreTrainedModel", choice: RouteChoice, image: Probe, video: Probe
) -> dict[str, Any]:
    """Return the profile fields that every model has, by name."""
    dtype = skeleton.config.dtype
    return {
        "folder": str(folder),
        "class_name": type(skeleton).__name__,
        "model_type": skeleton.config.model_type,
        "dtype": str(torch.float32 if dtype is None else dtype).removeprefix("torch."),
        "route": choice.route,
        "why": choice.why,
        "fit_video": video.fit,
        "fit_image": image.fit,
        "image_tokens": image.tokens,
        "frame_tokens": video.tokens,
        "image_pixel_bytes": image.pixel_bytes,
        "frame_pixel_bytes": video.pixel_bytes,
        "image_sizes": image.smaller,
        "frame_sizes": video.smaller,
    }


def _with_costs(parts: Mapping[Part, PartProfile], dry: DryRun) -> dict[Part, PartProfile]:
    if dry.why:
        logger.warning("computing costs are unknown: %s", dry.why)
    costs, row = dry.batch_costs, {"language": dry.row_memory}
    return {
        part: replace(half, batch_costs=costs.get(part, ()), row_memory=row.get(part))
        for part, half in parts.items()
    }


def _describe_captioner(
    folder: Path,
    headers: list[Header],
    skeleton: "PreTrainedModel",
    probing: Future[tuple[Probe, Probe]] | None,
    load: Load,
) -> ModelProfile:
    choice = choose_route(skeleton)
    takes_sound = choice.route in ON_HOST and hears(skeleton)
    halves = (
        undivided(skeleton, headers)
        if choice.route == "joint"
        else halves_of(skeleton, headers, hears=takes_sound)
    )
    processor = load()
    try_processor(processor, folder)
    hearing = hearing_profile(processor) if takes_sound else None
    if hearing is None:
        halves.pop("audio", None)
    dry = dry_run(skeleton, processor, choice.route, frames_per_video(processor))
    image, video = probing.result() if probing is not None else _probes(load())
    profile = _profile(folder, skeleton, choice, processor, halves, image, video)
    parts = _with_costs(profile.parts, dry)
    return replace(profile, parts=parts, hearing=hearing, **dry.profile_fields)


def _start_probing(
    pool: ThreadPoolExecutor, folder: Path, load: Load
) -> Future[tuple[Probe, Probe]] | None:
    """Start to probe the sizes of images and videos. Return None if the processor does not work;
    that error is reported later, once the model's class is known."""
    try:
        # Import everything before the thread starts: other imports run at the same time.
        with gc_frozen():
            processor = load()
        try_processor(processor, folder)
    except Exception as error:
        if out_of_memory(error):
            raise
        return None
    return pool.submit(_probes, processor)


def _probes(processor: Processor) -> tuple[Probe, Probe]:
    """Probe the sizes of images and of videos, with a processor of its own, because the probe
    replaces its methods."""
    image = probe(processor, "image")
    return image, probe(processor, "video") if takes_videos(processor) else image


def frames_per_video(processor: Processor) -> int:
    """Return the number of frames that a video must have, for a processor that always writes the
    same number of placeholders. It is 0 if the processor counts frames, or does not state the
    placeholders per frame."""
    per_frame = getattr(processor, "num_query_tokens", None)
    if not per_frame or not takes_videos(processor):
        return 0
    clips = [black(processor, "video", 1.0, EDGE, count) for count in FEW_AND_MANY]
    few, many = (prepare(processor, clip).count.tokens for clip in clips)
    return int(few // per_frame) if few == many else 0


CHAT_MARK = re.compile(r"im_start|start_header_id|start_of_turn|INST\]|<\|(user|assistant)\|>")
"""Tokens with which chat templates begin a turn."""


def lacks_template(processor: Processor, layouts: Iterable[Layout]) -> bool:
    """Return whether prompts are written without a chat template, although the tokenizer has marks
    of turns: then the file of the template is missing."""
    marks = [token for token in control_tokens(processor) if CHAT_MARK.search(token)]
    return bool(marks) and not any(layout.form in TEMPLATED for layout in layouts)


def _profile(
    folder: Path,
    skeleton: "PreTrainedModel",
    choice: RouteChoice,
    processor: Processor,
    halves: dict[Part, PartProfile],
    image: Probe,
    video: Probe,
) -> ModelProfile:
    config = skeleton.config
    written = {kind: prompt_overhead(processor, kind) for kind in get_args(MediaKind)}
    modalities: tuple[Modality, ...] = ("image", "video") if takes_videos(processor) else ("image",)
    prompted = choice.route != "joint" and depends_on_prompt(skeleton)
    layouts = [layout_of(processor, channel) for channel in channels_of(processor)]
    return ModelProfile(
        **_common_fields(folder, skeleton, choice, image, video),
        modalities=modalities,
        images_per_prompt=int(any(layout.alone for layout in layouts)),
        frames_per_video=frames_per_video(processor),
        continues_prompt=not prompted and continues_prompt(processor, skeleton),
        prompted=prompted,
        parts=halves,
        sampling=default_sampling(processor),
        lacks_template=lacks_template(processor, layouts),
        opens_reasoning=any(bool(opens_reasoning(processor, layout, "?")) for layout in layouts),
        takes_system=all(system_form(processor, layout.form) for layout in layouts),
        placeholders=tuple(sorted(placeholder_tokens(processor))),
        control_tokens=tuple(sorted(control_tokens(processor))),
        answer_blank=answer_blank(processor),
        feature_width=int(config.get_text_config().hidden_size),
        pixels_per_video=pixels_per_video(processor),
        least_pixels=min_pixels_of(processor),
        video_bounds=bounds_of(processor, LONG_EDGES[0], video.tokens),
        tokens_per_prompt=max(per_prompt for per_prompt, _ in written.values()),
        tokens_per_frame=written["video"][1],
    )


def warm(job_fields: JobFields) -> None:
    """Import what every model needs, so that it does not count as memory of describing."""
    import_transformers()


def run(job_fields: JobFields, report: EventReporter) -> None:
    """Describe the job's model and send the result as the note `profile`."""
    job = parse_job(DescribeJob, job_fields)
    try:
        with job.files.compared():
            profile = describe(
                job.model,
                trust_remote_code=job.trust_remote_code,
                revision=job.revision,
                max_pixels=job.max_pixels,
                max_video_pixels=job.max_video_pixels,
                as_published=job.as_published,
                today=job.today,
            )
    except RecursionError as error:
        raise UsageError(
            f"model {job.model} cannot be read: one of its files is nested too deeply",
            hint="Check its source, and its *.json and *.jinja files",
        ) from error
    report.note(profile=profile.to_json())


def run_gguf(job_fields: JobFields, report: EventReporter) -> None:
    """Compare a user's GGUF file with the checkpoint, and send what it is as the note `file`."""
    from stages.models.gguf.llama_context import kind_of
    from stages.models.gguf.user_file import check_tokens, compared, expected_shapes
    from stages.models.loading import stored_weights

    job = parse_job(DescribeJob, job_fields)
    with job.files.compared():
        folder = find_model(job.model, job.revision).folder
        config, cls = config_and_class(folder, job.trust_remote_code)
        skeleton = skeleton_of(config, cls)
        stored = stored_weights(folder, skeleton)
        header, mapping = compared(Path(job.gguf), config, skeleton, stored)
        processor = load_processor(folder, job.trust_remote_code)
        check_tokens(header, processor.tokenizer, placeholder_tokens(processor))
    expected = expected_shapes(skeleton, mapping)
    replaced = sum(prod(shape) for name, shape in expected.items() if name in header.tensors)
    numbers = {"bytes": header.path.stat().st_size, "parameters": header.parameters}
    numbers |= {"replaced": replaced, **mapping.dimensions}
    report.note(file={"kind": kind_of(header), **numbers})
