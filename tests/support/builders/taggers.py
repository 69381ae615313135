"""Tiny graphs and tag files in the forms of published taggers."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SIZE = 16
"""Side of the pictures of the tiny graphs, in pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyGraph:
    """A graph that gives a weighted sum of all numbers of a picture for each tag."""

    path: Path
    weights: NDArray[np.float32]
    """Shape (numbers, tags)."""

    def logits(self, numbers: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what it computes, without the graph. `numbers`: one picture, as it takes it."""
        made: NDArray[np.float32] = numbers.reshape(-1).astype(np.float32) @ self.weights
        return made


def write_graph(
    path: Path,
    shape: tuple[int | str, ...],
    tags: int,
    *,
    spread: float = 1.0,
    sigmoid: bool = False,
    outputs: int = 1,
    index: int = 0,
    width: int | str | None = None,
    dtype: int = TensorProto.FLOAT,
    seed: int = 0,
) -> TinyGraph:
    """Write a graph of one picture input of this shape. Output `index` of `outputs` is that of the
    weights; others give its negative. `spread` is about the deviation of its numbers for random
    pictures whose numbers deviate by 1; `width` is the length that the file states."""
    size = SIZE * SIZE * 3
    random = np.random.default_rng(seed)
    weights = (random.standard_normal((size, tags)) * spread / size**0.5).astype(np.float32)
    kind = np.float16 if dtype == TensorProto.FLOAT16 else np.float32
    nodes = [
        helper.make_node("Reshape", ["picture", "flat"], ["row"]),
        helper.make_node("MatMul", ["row", "weights"], ["sum"]),
    ]
    last = "sum"
    if sigmoid:
        nodes.append(helper.make_node("Sigmoid", ["sum"], ["probabilities"]))
        last = "probabilities"
    names = []
    for at in range(outputs):
        operation = "Identity" if at == index else "Neg"
        nodes.append(helper.make_node(operation, [last], [f"out{at}"]))
        names.append(f"out{at}")
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("picture", dtype, shape)],
        [
            helper.make_tensor_value_info(name, dtype, [shape[0], tags if width is None else width])
            for name in names
        ],
        [
            numpy_helper.from_array(np.asarray([-1, size], np.int64), "flat"),
            numpy_helper.from_array(weights.astype(kind), "weights"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return TinyGraph(path=path, weights=weights)


def write_selected_tags(path: Path, tags: list[tuple[str, int]]) -> None:
    """Write the tag file of WD: name and category of each."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["tag_id", "name", "category", "count"])
        writer.writerows([at, name, category, 1000] for at, (name, category) in enumerate(tags))


def write_tag_mapping(path: Path, tags: list[tuple[str, str]]) -> None:
    """Write the tag file of CL."""
    mapping = {str(at): {"tag": tag, "category": of} for at, (tag, of) in enumerate(tags)}
    path.write_text(json.dumps(mapping))


def write_metadata(path: Path, tags: list[tuple[str, str]]) -> None:
    """Write the tag file of Camie."""
    mapping = {
        "idx_to_tag": {str(at): tag for at, (tag, _) in enumerate(tags)},
        "tag_to_category": dict(tags),
    }
    about = {"total_tags": len(tags), "tag_mapping": mapping}
    path.write_text(json.dumps({"model_info": {"img_size": SIZE}, "dataset_info": about}))
