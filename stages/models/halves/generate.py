"""Feeds stored features to the language half to generate text.

How text is generated:

1. `generate` checks that every input of the encoding is present.
2. Unless the model runs jointly, it checks that the prompt has as many placeholders as there are
   features. A mismatch would give wrong text without an error.
3. DELIVER runs the split strategy of the model. Protocol: `generate` of the half takes the records.
4. Replay: the half gets pixels without storage. During the call the `get_*_features` methods of its
   owner object return the records.
5. Splice: features are written into the embeddings at the placeholders, and the reader generates
   from those.
6. Joint: the whole model takes the pixels.
7. Sound is replayed beside the first two: transformers takes no outputs of an audio encoder.
8. Meanwhile a hook keeps the output head from computing large logits for the whole prompt.
"""

import contextlib
import functools
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationMixin

from artifacts.errors import UsageError
from artifacts.records.tensors import make_record
from artifacts.schema import Route
from stages.models.halves.boundary import owner_path, reader_path
from stages.models.halves.features import (
    count_heard,
    count_tokens,
    is_content,
    moved,
    placeholder_ids,
    twice,
)
from stages.models.halves.model_class import SOUNDS, USE_SOUND
from stages.models.halves.records import RowCount, merge, split
from stages.models.halves.split_route import AUDIO, MODALITIES, choose_route
from stages.models.protocols import Half, Tree, module_of

UNDIVIDED = "pixels"
"""Key of the pixels among the features, for a model that runs whole."""
GENERATE, FORWARD = "generate", "forward"
"""Methods of a model that receive features."""
ON_HOST: tuple[Route, ...] = ("protocol", "replay")
"""Split strategies in which nothing but `generate` computes from the tokens of the prompt."""
OF_SOUND = "placeholders of sound"
LOGITS_WORTH = 64 << 20
"""Size in bytes up to which all logits are computed, as the whole model does. Above it, only the
last position is computed; one row may be rounded differently than many."""


def generate(
    half: Half,
    inputs: Mapping[str, Any],
    features: Mapping[str, Any],
    *,
    on_host: bool = False,
    **options: Any,
) -> torch.Tensor:
    """Return the tokens that `generate` of the whole model gives for these inputs.

    `inputs` are all outputs of the processor besides pixels. `half` is the language half, or the
    whole model if `features` holds pixels. Without features, the input is text alone. `on_host`:
    `custom_generate` may get inputs in host memory, from which transformers prepares positions and
    masks without waiting for the device. Raises UsageError if features or inputs are missing.
    """
    with torch.inference_mode(), _next_logits_only(half):
        tokens: torch.Tensor = _delivered(GENERATE, half, inputs, features, options, on_host)
    return tokens


def forward(
    half: Half, inputs: Mapping[str, Tree], features: Mapping[str, Tree], **options: Any
) -> Any:
    """Return the output of one forward pass for the inputs of `generate`, with gradients enabled.
    Raises UsageError if features or inputs are missing."""
    return _delivered(FORWARD, half, inputs, features, options)


def _delivered(
    method: str,
    half: Half,
    inputs: Mapping[str, Tree],
    features: Mapping[str, Tree],
    options: Mapping[str, Any],
    on_host: bool = False,
) -> Any:
    text = {n: value for n, value in inputs.items() if not is_content(n) and value is not None}
    if absent := sorted(getattr(features, "needs", frozenset()) - set(text)):
        raise UsageError(
            f"decoding needs {', '.join(absent)}, which encoding had",
            hint="Pass every output of the processor besides the pixels and the sound",
        )
    route: Route = "joint" if UNDIVIDED in features else choose_route(half).route
    if route != "joint" and not getattr(features, "already_read", False):
        _check_placeholders(half, text, features)
    if not (on_host and route in ON_HOST and _prepares_alone(half)):
        text = {name: moved(value, half.device) for name, value in text.items()}
    if USE_SOUND in text and USE_SOUND not in inspect.signature(half.forward).parameters:
        del text[USE_SOUND]
    if AUDIO in features and route not in ON_HOST:
        raise UsageError(
            f"{type(half).__name__} cannot be given stored sound: its route is {route}",
            hint="Leave the sound out",
        )
    return DELIVER[route](half, method, text, features, options)


def _prepares_alone(half: Half) -> bool:
    """Return whether `generate` computes nothing from the prompt before the decoder runs."""
    method: Any = type(half).generate
    return method is GenerationMixin.generate and not half.config.is_encoder_decoder


@contextmanager
def _next_logits_only(half: Half) -> Iterator[None]:
    """Make the output head compute only the last position. Most classes request this themselves.
    The others would compute the logits of the whole prompt, although `generate` reads one row."""
    head = half.get_output_embeddings()
    if head is None or "logits_to_keep" in inspect.signature(half.forward).parameters:
        yield
        return

    def last(module: Any, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
        hidden = given[0] if given else None
        if not isinstance(hidden, torch.Tensor) or hidden.ndim != 3:
            return None
        size = hidden.shape[:2].numel() * module.weight.shape[0] * hidden.element_size()
        return (hidden[:, -1:], *given[1:]) if size > LOGITS_WORTH else None

    with head.register_forward_pre_hook(last):
        yield


def new_tokens(tokens: torch.Tensor, prompt: torch.Tensor | None) -> torch.Tensor:
    """Return the new tokens, without the prompt and the start token.

    The output may contain the prompt as it is, after a start token, or with a start token in place
    of its first token and without its last one. It contains no prompt if that went to an encoder.
    """
    length = 0 if prompt is None else prompt.shape[1]
    if prompt is None or not length:
        return tokens[:, 1:]
    prompt_there = prompt.to(tokens.device)
    for start in (0, 1):
        if torch.equal(tokens[:, start : start + length], prompt_there):
            return tokens[:, start + length :]
    if length > 2 and torch.equal(tokens[:, 1 : length - 1], prompt_there[:, 1:-1]):
        return tokens[:, length - 1 :]
    return tokens[:, 1:]


def prompt_in(model: Half, inputs: Mapping[str, Any]) -> torch.Tensor | None:
    """Return the tokens with which the output of `model` may begin; not those of an encoder."""
    encodes = model.config.is_encoder_decoder or model.config.get_text_config().is_encoder_decoder
    return inputs.get("decoder_input_ids" if encodes else "input_ids")


def _by_protocol(
    half: Half, method: str, text: Any, features: Mapping[str, Tree], options: Any
) -> Any:
    seen = {modality: record for modality, record in features.items() if modality != AUDIO}
    replaced: dict[str, Any] = {"mm_encoder_outputs": _copies(half, seen)} if seen else {}
    if AUDIO not in features:
        return _of(half, method)(**text, **replaced, **options)
    replaced |= _blank(half, features, lambda name: name in SOUNDS)
    with _replayed(half, features, (AUDIO,)):
        return _of(half, method)(**text, **replaced, **options)


def _of(model: Half, method: str) -> Callable[..., Any]:
    """Return a method of a model. For a forward pass it is the model itself, so that hooks run."""
    return model if method == FORWARD else getattr(model, method)


def _by_replay(
    half: Half, method: str, text: Any, features: Mapping[str, Tree], options: Any
) -> Any:
    """Pass pixels without storage to the model, and make its own methods return the features."""
    blank = _blank(half, features, lambda name: True)
    with _replayed(half, features, features):
        return _of(half, method)(**text, **blank, **options)


def _blank(
    half: Half, features: Mapping[str, Tree], wanted: Callable[[str], bool]
) -> dict[str, torch.Tensor]:
    """Return pixels and sound without storage, as far as `wanted`."""
    shapes = getattr(features, "blank", {})
    return {
        name: torch.zeros(
            (), dtype=torch.long if name.endswith("_ids") else half.dtype, device=half.device
        ).expand(tuple(shape))
        for name, shape in shapes.items()
        if wanted(name)
    }


@contextmanager
def _replayed(half: Half, features: Mapping[str, Any], modalities: Iterable[str]) -> Iterator[None]:
    """Make the model's own methods return the features of these modalities. Raises UsageError
    unless it asks for all of them."""
    replayed = _copies(half, {modality: features[modality] for modality in modalities})
    with _answering(half, replayed, features) as requested:
        yield
    if unread := sorted(set(replayed) - requested):
        raise UsageError(
            f"{type(half).__name__} did not request its {' and '.join(unread)} features",
            hint="Its captions would ignore the media; please report this model",
        )


@contextmanager
def _answering(
    half: Half, outputs: Mapping[str, Tree], features: Mapping[str, Tree]
) -> Iterator[set[str]]:
    """Make the owner's methods return `outputs`, which are of `features`. Yield the set of
    requested modalities."""
    tokens = getattr(features, "heard_tokens", None) or []
    # A processor may cut one sound into several rows.
    sound_rows = [s[0] for n, s in getattr(features, "blank", {}).items() if n in SOUNDS]
    owner = half.get_submodule(owner_path(module_of(half)) or "")
    requested: set[str] = set()
    replaced = []
    for modality in (m for m in (*MODALITIES, AUDIO) if m in outputs):
        name = f"get_{modality}_features"
        if not hasattr(owner, name):
            continue  # never requested, which the caller reports

        def answer(*given: Any, modality: str = modality, **named: Any) -> Any:
            requested.add(modality)
            if modality != AUDIO or not tokens:
                return outputs[modality]
            rows = len(next(value for value in (*given, *named.values()) if torch.is_tensor(value)))
            return _repeated(outputs[modality], tokens, rows // sound_rows[0])

        # `generate` reads from the signature which arguments to pass.
        owner.__dict__[name] = functools.wraps(getattr(owner, name))(answer)
        replaced.append(name)
    try:
        yield requested
    finally:
        for name in replaced:
            del owner.__dict__[name]


def _repeated(record: Any, tokens: Sequence[int], times: int) -> Any:
    """Return the record of sounds with each row `times` times, one for each of its beams."""
    if times < 2:
        return record
    rows, rule = split(record, [RowCount(tokens=count, media=1) for count in tokens])
    return merge([row for row in rows for _ in range(times)], rule)


def _by_splice(
    half: Half, method: str, text: Any, features: Mapping[str, Tree], options: Any
) -> Any:
    """Put features into the embeddings at the placeholders, and let the reader generate from
    them."""
    module = module_of(half)
    path = reader_path(module, owner_path(module) or "")
    assert path is not None  # the route is chosen by it
    reader: Any = module.get_submodule(path)
    ids = text["input_ids"]
    embeddings = half.get_input_embeddings()(ids)
    standing = torch.isin(
        ids, torch.tensor(sorted(placeholder_ids(half.config)), device=ids.device)
    )
    if features:  # without features, the input is text alone
        vectors = [r.pooler_output.flatten(0, -2) for r in _copies(half, features).values()]
        seen = torch.cat(vectors).to(embeddings.dtype)
        embeddings = embeddings.masked_scatter(standing.unsqueeze(-1), seen)
    arguments = {"inputs_embeds": embeddings, "attention_mask": text["attention_mask"]}
    if not reader.config.is_encoder_decoder and method == GENERATE:
        arguments["input_ids"] = ids
    return _of(reader, method)(**arguments, **options)


def _jointly(half: Half, method: str, text: Any, features: Mapping[str, Any], options: Any) -> Any:
    pixels = {n: moved(v, half.device, half.dtype) for n, v in features.get(UNDIVIDED, {}).items()}
    return _of(half, method)(**text, **pixels, **options)


DELIVER: dict[Route, Callable[[Half, str, Any, Mapping[str, Any], Any], Any]] = {
    "protocol": _by_protocol,
    "replay": _by_replay,
    "splice": _by_splice,
    "joint": _jointly,
}


def _copies(half: Half, features: Mapping[str, Any]) -> dict[str, Any]:
    """Make shallow copies of the records on the half's device: `generate` changes them in place."""
    copies = {
        modality: make_record(type(record), {n: moved(v, half.device) for n, v in record.items()})
        for modality, record in features.items()
    }
    return {m: twice(record) if m == AUDIO else record for m, record in copies.items()}


def _check_placeholders(half: Half, text: Any, features: Mapping[str, Tree]) -> None:
    """Refuse features that do not match the placeholders; they would give wrong text without an
    error. Raises UsageError."""
    ids = text["input_ids"]

    def standing(kinds: tuple[str, ...]) -> torch.Tensor:
        placeholders = sorted(placeholder_ids(half.config, kinds))
        return torch.isin(ids, torch.tensor(placeholders, device=ids.device)).sum(-1)

    seen = {modality: record for modality, record in features.items() if modality != AUDIO}
    images, counts = int(standing(MODALITIES).sum()), [*map(count_tokens, seen.values())]
    held = sum(count for count in counts if count is not None)
    if (None not in counts and images != held) or (images and not seen):
        raise _mismatch(images, held)
    if not (sounds := standing((AUDIO,)).tolist()) or not (any(sounds) or AUDIO in features):
        return
    # More features than placeholders are cut without an error, and shift those of later rows.
    expected = getattr(features, "heard_tokens", None)
    if AUDIO not in features or (expected is not None and sounds != expected):
        raise _mismatch(sum(sounds), sum(expected or ()), OF_SOUND)
    heard = count_heard(features[AUDIO])
    if expected is None and heard is not None and sum(sounds) != heard:
        raise _mismatch(sum(sounds), heard, OF_SOUND)


def _mismatch(standing: int, held: int, kind: str = "placeholders") -> UsageError:
    return UsageError(
        f"the prompt has {standing} {kind}, but there are features for {held}",
        hint="Encode the same media again with the same processor",
    )


def offloaded_bytes(half: Half) -> int:
    """Return the bytes that each forward pass fetches; 0 if all weights are on the device. Each
    token needs at least one pass."""
    layers = [half.get_submodule(path) for path in waiting(getattr(half, "hf_device_map", {}))]
    return sum(weight.nbytes for layer in layers for weight in layer.parameters())


def waiting(places: Mapping[str, Any]) -> list[str]:
    """Return the paths of the layers that are not on the device; on a CPU, `cpu` is the device."""
    away = "disk" if "disk" in places.values() else "cpu"
    return [path for path, place in places.items() if place == away and len({*places.values()}) > 1]


@contextlib.contextmanager
def dispatching(receive: Callable[..., Any]) -> Iterator[None]:
    """Make the loader pass a model whose layers are away to `receive` inside the block.

    The call is that of accelerate's `dispatch_model`, with `offload_index`: name of a weight → its
    `safetensors_file` and its `weight_name` there."""
    from transformers.integrations import accelerate as integration

    library: Any = integration
    stock = library.dispatch_model

    @functools.wraps(stock)
    def given(model: Half, *, offload_index: Any, **options: Any) -> Any:
        for entry in (offload_index or {}).values():
            # The loader may have received links, which are deleted when it returns.
            entry["safetensors_file"] = os.path.realpath(entry["safetensors_file"])
        return receive(model, offload_index=offload_index, **options)

    library.dispatch_model = given
    try:
        yield
    finally:
        library.dispatch_model = stock
