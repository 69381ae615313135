"""Runs a graph with ONNX Runtime directly on the memory of torch tensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.dlpack import from_dlpack

from stages.models.graphs.providers import CPU, Provider, open_session

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
