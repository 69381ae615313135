"""Loads a half whose encoders run as graphs, without reading the encoders' weights.

ONNX Runtime runs each graph directly on the memory of torch tensors.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.dlpack import from_dlpack

from artifacts.errors import EnvironmentFault, PenstockError, UsageError
from artifacts.schema import Half
from artifacts.tensors import place_tensors
from stages.models.graphs import FOLDER
from stages.models.graphs.graph_inputs import GraphInputs, bound, graph_inputs
from stages.models.graphs.manifest import (
    CPU,
    Graph,
    GraphEncoder,
    HalfGraphs,
    Provider,
    open_session,
    read_manifest,
)
from stages.models.halves.absent import MissingModule, MissingWeight
from stages.models.halves.routes import one_line
from stages.process.exit_diagnosis import out_of_memory

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

    def __init__(self, path: Path, provider: Provider) -> None:
        """Load the graph. Raises EnvironmentFault."""
        self._session = open_session(path, provider, torch.get_num_threads())
        self._on_host = provider.name == CPU
        device = provider.options.get("device_id", 0)
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
        found = zip(map(from_dlpack, made), self._outputs.values(), strict=True)
        return [out.view(torch.bool) if dtype is torch.bool else out for out, dtype in found]

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
        given = graph_inputs(skeleton, bound(skeleton, args, kwargs), encoder.packed)
        graph, run = self._graph_for(given)
        tensors = {name: given.tensors[name.removeprefix("input.")] for name in graph.inputs}
        with torch.inference_mode():
            found = self._compute(run, tensors)
            made = [out.to(like) if out.is_floating_point() else out for out in found]
        return place_tensors(graph.output, dict(zip(graph.names, made, strict=True)))

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
    half: Half,
    provider: Provider,
    like: torch.Tensor,
    load: Callable[[Sequence[str]], Any],
) -> Any:
    """Return a half with graphs in place of its encoders, which `load` leaves out. The rest of the
    half computes in the type and on the device of `like`. Raises PenstockError."""
    graphs = graphs_of(model, half)
    loaded = load([encoder.path for encoder in graphs.towers])
    sessions: Mapping[str, GraphSession] = {
        graph.file: GraphSession(model / FOLDER / graph.file, provider)
        for encoder in graphs.towers
        for graph in encoder.graphs
    }
    for encoder in graphs.towers:
        parent, _, name = encoder.path.rpartition(".")
        absent = loaded.get_submodule(encoder.path)
        runs = [sessions[graph.file] for graph in encoder.graphs]
        setattr(loaded.get_submodule(parent), name, OnnxEncoder(absent, encoder, runs, like))
    return loaded


def graphs_of(model: Path, half: Half) -> HalfGraphs:
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
