"""Loads a half whose encoders run as graphs, without reading the encoders' weights.

ONNX Runtime runs each graph directly on the memory of torch tensors.

The module also finds the encoders of a half, and turns an encoder call into its graph's inputs.

The encoders are the largest modules that a half calls to make its features. They are found by
running the half. An encoder's inputs and outputs are those of a module call, which a graph can
replace. Everything before and after stays the model's own code: grids, the selection of features
and their order.

Values that the encoder would compute from its data, such as grids, are computed outside the graph.
transformers provides this for the families that need it.

Some encoders take the patches of all images in one row. Each image, or window of it, is a segment
of any length that attends only to itself. transformers computes segment by segment, or passes the
row and the segments' ends to an attention function with "flash" in its name. This module provides
such a function, in a form that a graph can hold:

1. It gathers the segments into a padded batch.
2. It computes attention under a mask.
3. It scatters the result back into the row.

The number of segments is the length of the tensor of their ends. The longest segment's length is
passed as the length of an empty tensor, not as a number. So no shape in the graph depends on data,
and segments of unequal length are computed correctly. transformers' own exporter assumes equal
lengths and is silently wrong otherwise.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.dlpack import from_dlpack

from artifacts.errors import EnvironmentFault, PenstockError, UsageError
from artifacts.records.tensors import Tree, place_tensors
from artifacts.schema import HalfName
from stages.memory.meta_device import changed
from stages.models.graphs import FOLDER
from stages.models.graphs.manifest import Graph, GraphEncoder, HalfGraphs, read_manifest
from stages.models.graphs.sessions import CPU, Providers, open_session
from stages.models.halves.absent import MissingModule, MissingWeight
from stages.models.halves.model_class import one_line
from stages.models.protocols import Half
from stages.process.exit_diagnosis import out_of_memory

NAME = "flash_packed"
LONGEST = ("max_seqlen", "max_window_seqlen")
"""Argument names for the length of an encoder's longest segment."""


def index_of(ends: torch.Tensor, longest: int) -> torch.Tensor:
    """Return the index of each segment's tokens in the row [segments, longest], with -1 as filler.
    `ends` [segments + 1] are the boundaries; no segment is longer than `longest`."""
    ends = ends.long()
    steps = torch.arange(longest, device=ends.device)[None]
    return torch.where(steps < (ends[1:] - ends[:-1])[:, None], ends[:-1, None] + steps, -1)


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: torch.Tensor | int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention with the signature of transformers' attention functions.

    Query, key and value are [1, heads, row, width]. `cu_seq_lens_q` are the segment boundaries.
    `max_length_q` is the longest segment's length, or a tensor of that length."""
    attend = torch.nn.functional.scaled_dot_product_attention
    if (sharing := query.shape[1] // key.shape[1]) > 1:
        # Attention with shared key heads cannot be exported: give each query head its own keys.
        key, value = (part.repeat_interleave(sharing, dim=1) for part in (key, value))
    if cu_seq_lens_q is None:
        mask, scale = attention_mask, scaling
        attended = attend(query, key, value, attn_mask=mask, scale=scale)
        return attended.transpose(1, 2).contiguous(), None
    if max_length_q is None:
        max_length_q = int((cu_seq_lens_q[1:] - cu_seq_lens_q[:-1]).max())
    longest = max_length_q.shape[0] if isinstance(max_length_q, torch.Tensor) else max_length_q
    index = index_of(cu_seq_lens_q, longest)
    count, is_valid = query.shape[2], index >= 0
    rows = [part[0].transpose(0, 1)[index.clamp(0)] for part in (query, key, value)]
    first, second, third = (row.transpose(1, 2) for row in rows)
    mask = is_valid[:, None, None, :]
    made = attend(first, second, third, attn_mask=mask, scale=scaling)
    flat = made.transpose(1, 2).reshape(-1, made.shape[1], made.shape[3])
    # Filler goes to an extra place behind the row, which is cut off.
    back = torch.where(is_valid, index, count).reshape(-1)
    padded = torch.zeros(count + 1, *flat.shape[1:], dtype=flat.dtype, device=flat.device)
    return padded.index_put((back,), flat)[None, :count], None


def pack(inputs: MutableMapping[str, Any]) -> None:
    """Replace the longest segment's length among an encoder's inputs by a tensor of that length."""
    for name in LONGEST:
        if isinstance(longest := inputs.get(name), int):
            inputs[name] = torch.zeros(longest, dtype=torch.long)


@contextlib.contextmanager
def attending_packed(encoder: nn.Module) -> Iterator[None]:
    """Make an encoder use packed attention inside the block; preparing its inputs takes this into
    account."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    configs = {id(c): c for m in encoder.modules() if (c := getattr(m, "config", None)) is not None}
    named = [(c, getattr(c, "_attn_implementation", None)) for c in configs.values()]
    before = [(config, name) for config, name in named if name is not None]
    for config, _ in before:
        config._attn_implementation = NAME
    try:
        yield
    finally:
        for config, name in before:
            config._attn_implementation = name


@contextlib.contextmanager
def packing(encoder: nn.Module) -> Iterator[None]:
    """Make an encoder use packed attention inside the block, also in transformers' exporter.

    The exporter replaces the attention of many classes, but not a method of the instance. So
    `forward` is set on each attention instance.
    """
    from transformers.exporters import utils

    attentions = [m for m in encoder.modules() if "Attention" in type(m).__name__]
    for module in attentions:
        module.forward = MethodType(type(module).forward, module)
    utils._EXPORT_INPUT_PREPARERS[()] = lambda model, inputs: pack(inputs)
    try:
        with attending_packed(encoder):
            yield
    finally:
        del utils._EXPORT_INPUT_PREPARERS[()]
        for module in attentions:
            del module.__dict__["forward"]


MEANINGS = {
    "attention_mask": "1 where a token counts, 0 where it is padding",
    "cu_seqlens": "start of each image or frame in the sequence of patches, and its end",
    "cu_window_seqlens": "start of each window in the sequence of patches, and the end of the last",
    "grid_thw": "frames, rows and columns of patches of each image or video",
    "hidden_states": "patches of all images in one sequence, `pixel_values` of the processor",
    "input_ids": "tokens of the text",
    "max_seqlen": "zeros, as many as the longest image or frame has patches",
    "max_window_seqlen": "zeros, as many as the largest window has patches",
    "patch_attention_mask": "true where a patch is part of the image, false where it is padding",
    "pixel_attention_mask": "1 where a pixel is part of the image, 0 where it is padding",
    "pixel_values": "images or video frames, `pixel_values` of the processor",
    "position_ids": "position of each patch or token, of a patch its row and column",
    "spatial_shapes": "rows and columns of patches of each image",
    "window_index": "order of the groups of merged patches in which each window is contiguous",
}
"""Input of a graph → its meaning. Others are described by the argument that they come from."""


class GraphInputs(NamedTuple):
    """One encoder call in the form that a graph takes."""

    tensors: dict[str, torch.Tensor]
    """Tensors by name, or by their place in an argument, such as `masks.0`."""
    fixed: dict[str, Any]
    """Arguments that are not tensors. They are fixed in a graph."""


def is_packed(encoder: nn.Module, given: Mapping[str, Tree]) -> bool:
    """Return whether an encoder takes all images in one row and accepts segment lengths."""
    with attending_packed(encoder):
        return LONGEST[0] in prepared(encoder, given)


def prepared(encoder: nn.Module, given: Mapping[str, Tree]) -> dict[str, Tree]:
    """Return the arguments of a call with all values that are derived from them. `encoder` may be a
    skeleton: its weights are not used."""
    from transformers.exporters.utils import precompute_export_inputs

    inputs = {name: value for name, value in given.items() if value is not None}
    with torch.no_grad():
        precompute_export_inputs(encoder, inputs)
    return {name: value for name, value in inputs.items() if value is not None}


def graph_inputs(encoder: nn.Module, given: Mapping[str, Tree], packed: bool) -> GraphInputs:
    """Return the inputs of an encoder's graph for a call."""
    with attending_packed(encoder) if packed else contextlib.nullcontext():
        inputs = prepared(encoder, given)
    if packed:
        pack(inputs)
    tensors: dict[str, torch.Tensor] = {}
    fixed: dict[str, Any] = {}
    for name, value in inputs.items():
        _sort(name, value, tensors, fixed)
    return GraphInputs(tensors, {name: value for name, value in fixed.items() if value is not None})


def _sort(name: str, value: Any, tensors: dict[str, torch.Tensor], fixed: dict[str, Any]) -> None:
    if isinstance(value, torch.Tensor):
        tensors[name] = value
    elif isinstance(value, list | tuple):
        for at, part in enumerate(value):
            _sort(f"{name}.{at}", part, tensors, fixed)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            _sort(f"{name}.{key}", part, tensors, fixed)
    else:
        fixed[name] = value if isinstance(value, bool | int | float | str) else repr(value)


def described(tower: nn.Module, tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, str]]:
    """Return the type and the meaning of each input tensor of an encoder's graph."""
    source = f"of {type(tower).__name__}.forward in transformers"
    return {
        name: {
            "type": str(tensor.dtype).removeprefix("torch."),
            "meaning": MEANINGS.get(name.partition(".")[0], f"argument {name} {source}"),
        }
        for name, tensor in tensors.items()
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderCall:
    """One call of an encoder."""

    path: str
    """Path of the encoder in the half."""
    given: dict[str, Any]
    """Arguments by name."""


def encoder_calls(half: nn.Module, function: Callable[[], Any]) -> tuple[Any, list[EncoderCall]]:
    """Run `function` and return its result with the encoder calls, in order. Encoders are the
    outermost models in the half that are called; if none is called, the outermost modules."""
    from transformers import PreTrainedModel

    named = ((path, module) for path, module in half.named_modules() if path)
    weighed = {path: module for path, module in named if [*module.parameters()]}
    models: dict[str, nn.Module] = {
        path: m for path, m in weighed.items() if isinstance(m, PreTrainedModel)
    }
    outputs, calls = _watched(models, function)
    return (outputs, calls) if calls else _watched(weighed, function)


def bound(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    signature = inspect.signature(type(module).forward)
    arguments = dict(signature.bind_partial(module, *args, **kwargs).arguments)
    more = [n for n, p in signature.parameters.items() if p.kind is inspect.Parameter.VAR_KEYWORD]
    extra = {} if not more else arguments.pop(more[0], {})
    return {**dict(list(arguments.items())[1:]), **extra}


def _watched(
    modules: dict[str, nn.Module], function: Callable[[], Any]
) -> tuple[Any, list[EncoderCall]]:
    calls: list[EncoderCall] = []
    depth = 0

    def enter(path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal depth
        if not depth:
            arguments = {n: copied(v) for n, v in bound(module, args, kwargs).items()}
            calls.append(EncoderCall(path=path, given=arguments))
        depth += 1

    def leave(*_: Any) -> None:
        nonlocal depth
        depth -= 1

    with contextlib.ExitStack() as hooks:
        for path, module in modules.items():
            first = module.register_forward_pre_hook(partial(enter, path), with_kwargs=True)
            hooks.enter_context(first)
            hooks.enter_context(module.register_forward_hook(leave, always_call=True))
        return function(), calls


def copied(value: Any) -> Any:
    """Return a value whose tensors are copies: some models change their inputs in place."""
    return changed(lambda tensor: tensor.detach().clone(), value)


TYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(bfloat16)": torch.bfloat16,
    "tensor(double)": torch.float64,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(uint8)": torch.uint8,
    "tensor(bool)": torch.bool,
}
"""ONNX Runtime's name of a type → torch's."""
NUMBERS = {
    torch.float32: 1,
    torch.uint8: 2,
    torch.int32: 6,
    torch.int64: 7,
    torch.bool: 9,
    torch.float16: 10,
    torch.float64: 11,
    torch.bfloat16: 16,
}
"""Torch's type → its number in ONNX (TensorProto.DataType)."""


class GraphSession:
    """A loaded graph that runs on torch tensors."""

    def __init__(self, path: Path, providers: Providers) -> None:
        """Load the graph. Raises EnvironmentFault."""
        self._session = open_session(path, providers, torch.get_num_threads())
        name, options = providers[0]
        self._on_host = name == CPU
        device = options.get("device_id", 0)
        self._device = torch.device("cpu") if self._on_host else torch.device("cuda", device)
        self._inputs = {i.name: TYPES[i.type] for i in self._session.get_inputs()}
        self._outputs = {o.name: TYPES[o.type] for o in self._session.get_outputs()}

    def __call__(self, tensors: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        """Return the graph's outputs in its order. The tensors are cast to its input types."""
        binding, held = self._session.io_binding(), []
        for name, dtype in self._inputs.items():
            # Integer inputs determine shapes and are read on the host.
            device = self._device if dtype.is_floating_point else torch.device("cpu")
            tensor = tensors[name].detach().to(device, dtype).contiguous()
            held.append(tensor if tensor.numel() else tensor.new_empty(1))
            binding.bind_input(
                name,
                tensor.device.type,
                tensor.device.index or 0,
                NUMBERS[dtype],
                list(tensor.shape),
                held[-1].data_ptr(),
            )
        for name in self._outputs:
            binding.bind_output(name, self._device.type, self._device.index or 0)
        self._run(binding)
        made = (value._ortvalue.to_dlpack() for value in binding.get_outputs())
        outputs = zip(map(from_dlpack, made), self._outputs.values(), strict=True)
        return [out.view(torch.bool) if dtype is torch.bool else out for out, dtype in outputs]

    def _run(self, binding: Any) -> None:
        """Run the graph. A GPU provider has its own stream, so both streams are synchronized."""
        if not self._on_host:
            torch.cuda.current_stream(self._device).synchronize()
        self._session.run_with_iobinding(binding)
        if not self._on_host:
            binding.synchronize_outputs()


Run = Callable[[Mapping[str, torch.Tensor]], Sequence[torch.Tensor]]
"""Function that runs a graph."""
IN_TORCH = "Give --vision-backend torch, which accepts every input of the model"


class OnnxEncoder(MissingModule):
    """An encoder without weights whose `forward` runs a graph. `MissingModule` handles all other
    attribute access of the half."""

    def __init__(
        self, absent: MissingModule, encoder: GraphEncoder, runs: Sequence[Run], like: torch.Tensor
    ) -> None:
        """`runs` compute the encoder's graphs, in order. `like` has the type and device in which
        the half computes."""
        super().__init__(absent.skeleton, encoder.path)
        self.__dict__.update(_encoder=encoder, _runs=tuple(runs), _like=like)
        # Models read type and device from their parameters, and may have no others.
        self.register_parameter("anchor", nn.Parameter(like, requires_grad=False))

    def __getattr__(self, name: str) -> Any:
        like = self.__dict__.get("_like")
        if name in ("dtype", "device") and like is not None:
            return getattr(like, name)
        return super().__getattr__(name)

    def weight_at(self, path: str) -> Any:
        return StandInWeight(path, self._path, self.__dict__["_like"])

    def module_at(self, skeleton: nn.Module, path: str) -> MissingModule:
        return _Inside(skeleton, path, self)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the encoder's output. Raises UsageError for a call that no graph was made for."""
        encoder, skeleton, like = self._encoder, self.skeleton, self.__dict__["_like"]
        graph_arguments = graph_inputs(skeleton, bound(skeleton, args, kwargs), encoder.packed)
        graph, run = self._graph_for(graph_arguments)
        tensors = {
            name: graph_arguments.tensors[name.removeprefix("input.")] for name in graph.inputs
        }
        with torch.inference_mode():
            outputs = self._compute(run, tensors)
            cast_outputs = [out.to(like) if out.is_floating_point() else out for out in outputs]
        return place_tensors(graph.output, dict(zip(graph.names, cast_outputs, strict=True)))

    def _graph_for(self, given: GraphInputs) -> tuple[Graph, Run]:
        for graph, run in zip(self._encoder.graphs, self._runs, strict=True):
            if fits(graph, given):
                return graph, run
        what = {**{n: list(v.shape) for n, v in given.tensors.items()}, **given.fixed}
        shapes = ", ".join(f"{name}: {value}" for name, value in what.items())
        raise UsageError(
            f"no graph of {self._encoder.path} was exported for such pictures ({shapes[:200]})",
            hint=IN_TORCH,
        )

    def _compute(self, run: Run, tensors: Mapping[str, torch.Tensor]) -> Sequence[torch.Tensor]:
        try:
            return run(tensors)
        except Exception as error:  # ONNX Runtime's errors have no common class
            if isinstance(error, PenstockError) or out_of_memory(error):
                raise
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in tensors.items())
            raise UsageError(
                f"the graph of {self._encoder.path} does not take such pictures ({shapes[:200]}): "
                f"{one_line(error)}",
                hint=IN_TORCH,
            ) from error


class _Inside(MissingModule):
    """A part of an encoder that a graph computes."""

    def __init__(self, skeleton: nn.Module, path: str, encoder: OnnxEncoder) -> None:
        super().__init__(skeleton, path)
        self.__dict__.update(_of=encoder)

    def weight_at(self, path: str) -> Any:
        return self.__dict__["_of"].weight_at(path)

    def module_at(self, skeleton: nn.Module, path: str) -> MissingModule:
        return _Inside(skeleton, path, self.__dict__["_of"])


class StandInWeight(MissingWeight):
    """A stand-in for a parameter in a graph. It has the parameter's type and device."""

    def __init__(self, path: str, module: str, like: torch.Tensor) -> None:
        super().__init__(path, module)
        self.dtype, self.device = like.dtype, like.device


def fits(graph: Graph, given: GraphInputs) -> bool:
    """Return whether a graph was made for such a call."""
    tensors = given.tensors
    return graph.fixed == given.fixed and all(
        (name := taken.removeprefix("input.")) in tensors and _has_shape(tensors[name], shape)
        for taken, shape in graph.inputs.items()
    )


def _has_shape(tensor: torch.Tensor, shape: Sequence[int]) -> bool:
    return tensor.ndim == len(shape) and all(
        expected in (0, length) for expected, length in zip(shape, tensor.shape, strict=True)
    )


def load_with_graphs(
    model: Path,
    half: HalfName,
    providers: Providers,
    like: torch.Tensor,
    load: Callable[[Sequence[str]], Half],
) -> Half:
    """Return a half with graphs in place of its encoders, which `load` leaves out. The rest of the
    half computes in the type and on the device of `like`. Raises PenstockError."""
    graphs = graphs_of(model, half)
    loaded = load([encoder.path for encoder in graphs.towers])
    sessions: Mapping[str, GraphSession] = {
        graph.file: GraphSession(model / FOLDER / graph.file, providers)
        for encoder in graphs.towers
        for graph in encoder.graphs
    }
    for encoder in graphs.towers:
        absent = loaded.get_submodule(encoder.path)
        assert isinstance(absent, MissingModule)
        runs = [sessions[graph.file] for graph in encoder.graphs]
        loaded.set_submodule(encoder.path, OnnxEncoder(absent, encoder, runs, like))
    return loaded


def graphs_of(model: Path, half: HalfName) -> HalfGraphs:
    """Return the manifest entry of a half's graphs. Raises PenstockError if there are none."""
    manifest = read_manifest(model)
    if manifest is None or half not in manifest.halves:
        raise UsageError(
            f"{model} has no graphs of its {half} half",
            hint=f"Export them: penstock export {model} --to onnx --out DIR; then --model DIR",
        )
    gone = [name for name in manifest.files_of(half) if not (model / FOLDER / name).exists()]
    if gone:
        raise EnvironmentFault(f"{model / FOLDER} lacks {gone[0]}", hint="Export the graphs again")
    return manifest.halves[half]
