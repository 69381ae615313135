"""Puts graphs into files: without what the exporter says of its own code, and in 8 bit."""

from pathlib import Path
from typing import Any

from artifacts.errors import UsageError

PRODUCTS = ("MatMul", "Gemm")
"""Operators whose weights are put into 8 bit."""
IN_8_BIT = ("MatMulInteger", "DynamicQuantizeMatMul", "QGemm")
"""Operators that they become."""


def save_graph(program: Any, path: Path) -> None:
    """Write a graph, its numbers in a file beside it, which ONNX Runtime maps."""
    import onnx_ir

    for graph in program.graphs():
        for node in graph:
            # Stacks of calls, with paths of the machine that it was traced on.
            node.metadata_props.clear()
            node.doc_string = None
    program.producer_version = None
    onnx_ir.save(program, str(path), external_data=f"{path.name}.data")


def quantize_graph(path: Path, out: Path) -> int:
    """Write a graph again with the weights of its products in 8 bit, a scale a column, and return
    how many those are. What they are multiplied by is rounded while it computes. Raises UsageError
    where there are none: nothing else would say so."""
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    graph = onnx.load(str(path))
    # The exporter describes constants twice, and the quantizer takes the second for a product.
    known = {constant.name for constant in graph.graph.initializer}
    kept = [value for value in graph.graph.value_info if value.name not in known]
    del graph.graph.value_info[:]
    graph.graph.value_info.extend(kept)
    quantize_dynamic(
        graph,
        str(out),
        op_types_to_quantize=list(PRODUCTS),
        per_channel=True,
        extra_options={"MatMulConstBOnly": True},
        use_external_data_format=True,
    )
    made = onnx.load(str(out), load_external_data=False)
    count = sum(node.op_type in IN_8_BIT for node in made.graph.node)
    if not count:
        raise UsageError(
            f"no product of {path.stem} could be put into 8 bit",
            hint="Export it with --to onnx or onnx-fp16",
        )
    return count
