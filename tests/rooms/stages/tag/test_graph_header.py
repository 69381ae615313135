"""Headers of ONNX files as ONNX's own package reads them, and of damaged ones."""

import contextlib
import random
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from stages.tag.graph_header import read_header
from tests.support.builders.taggers import SIZE, write_graph


def test_a_header_is_that_of_the_library(tmp_path: Path) -> None:
    path = tmp_path / "g.onnx"
    write_graph(path, (2, 3, SIZE, SIZE), 7, outputs=3, index=1, width="tags")
    model = onnx.load(path)
    weights = numpy_helper.to_array(model.graph.initializer[1])
    old = helper.make_tensor_value_info("weights", TensorProto.FLOAT, weights.shape)
    model.graph.input.append(old)  # as before version 4 of the format
    onnx.save(model, path, save_as_external_data=True, location="w.data", size_threshold=100)
    header = read_header(path)
    (taken,) = header.inputs
    assert (taken.name, taken.type, taken.shape) == ("picture", 1, (2, 3, SIZE, SIZE))
    assert [(one.name, one.shape) for one in header.outputs] == [
        (f"out{at}", (2, 0)) for at in range(3)
    ]
    assert header.data == ("w.data",)
    assert str(header.outputs[0]) == "2x?"


def test_damage_is_a_value_error_or_read(tmp_path: Path) -> None:
    path = tmp_path / "g.onnx"
    write_graph(path, ("N", 3, SIZE, SIZE), 2)
    whole = path.read_bytes()
    draw = random.Random(0)
    for _ in range(1500):
        damaged = bytearray(whole[: draw.choice([len(whole), draw.randrange(1, len(whole))])])
        for _ in range(draw.randrange(4)):
            damaged[draw.randrange(min(len(damaged), 300))] = draw.randrange(256)
        path.write_bytes(damaged)
        with contextlib.suppress(ValueError):
            read_header(path)
    for text in (b"\x00", b"\xff" * 50, b"<html>", whole[: len(whole) // 2]):
        path.write_bytes(text)
        with pytest.raises(ValueError, match=r"^it"):
            read_header(path)
