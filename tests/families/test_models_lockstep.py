"""Many calls cross the same layers together: each layer comes once, and each call computes what it
computes alone."""

import contextvars
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from stages.models.streaming.layers import LayerProvider
from stages.models.streaming.load import LayerLockstep

SETTING = contextvars.ContextVar("SETTING", default="none")


class Layer(nn.Module):
    """Adds its number, if it is there."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.there = False

    def forward(self, value: list[int]) -> list[int]:
        assert self.there, "a layer computes that is not there"
        return [*value, self.number]


class RecordSet(LayerProvider):
    """Has the layers, and takes down what is asked of it."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = layers
        self.brought: list[int] = []
        self.expected: list[int] = []
        self.broken = -1

    def prefetch(self, layer: int) -> None:
        self.expected.append(layer)

    def load(self, layer: int) -> None:
        assert not any(one.there for one in self.layers)
        if layer == self.broken:
            raise OSError("the disk is gone")
        self.brought.append(layer)
        self.layers[layer].there = True

    def release(self, layer: int) -> None:
        self.layers[layer].there = False


def made(count: int = 4) -> tuple[list[Layer], RecordSet, LayerLockstep]:
    layers = [Layer(number) for number in range(count)]
    record_set = RecordSet(layers)
    return layers, record_set, LayerLockstep(layers, record_set)


def through(layers: Sequence[Layer], *ways: Sequence[int]) -> list[Callable[[], list[int]]]:
    """A call for each way, which is the numbers of the layers that it takes."""

    def call(way: Sequence[int]) -> Callable[[], list[int]]:
        def compute() -> list[int]:
            value: list[int] = []
            for number in way:
                value = layers[number](value)
            return value

        return compute

    return [call(way) for way in ways]


def test_each_layer_comes_once_for_all_calls_and_the_next_is_expected_meanwhile() -> None:
    layers, record_set, lockstep = made()
    assert lockstep.run_calls(through(layers, *[range(4)] * 5)) == [[0, 1, 2, 3]] * 5
    assert record_set.brought == [0, 1, 2, 3]
    assert record_set.expected == [1, 2, 3, 0]  # the first one again, for the calls that follow
    assert lockstep.run_calls([]) == [] and record_set.brought == [0, 1, 2, 3]


def test_who_takes_another_way_is_waited_for() -> None:
    layers, record_set, lockstep = made()
    ways = [(0, 1, 2, 3), (0, 3), (2, 3), (), (0, 1, 2, 3)]
    assert lockstep.run_calls(through(layers, *ways)) == [list(way) for way in ways]
    assert record_set.brought == [0, 1, 2, 3]


def test_layers_that_are_called_again_come_again() -> None:
    layers, record_set, lockstep = made(2)
    assert lockstep.run_calls(through(layers, (0, 0, 1, 0), (0, 0, 1, 0))) == [[0, 0, 1, 0]] * 2
    assert record_set.brought == [0, 1, 0]


def test_what_comes_next_is_learned() -> None:
    layers, record_set, lockstep = made()
    way = (2, 0, 3)
    lockstep.run_calls(through(layers, way))
    record_set.expected.clear()
    lockstep.run_calls(through(layers, way, way))
    assert record_set.expected == [0, 3, 2]


def test_what_one_call_raises_ends_all_and_the_layers_are_as_before() -> None:
    layers, _, lockstep = made()
    left: list[str] = []

    def waiting() -> list[int]:
        try:
            return list(layers[1](layers[0]([])))
        finally:
            left.append("left")

    def failing() -> list[int]:
        layers[0]([])
        raise MemoryError("no more")

    with pytest.raises(MemoryError):
        lockstep.run_calls([waiting, failing, waiting])
    assert left == ["left", "left"]
    assert not any("forward" in layer.__dict__ for layer in layers)
    assert not any(layer.there for layer in layers)
    assert lockstep.run_calls(through(layers, range(4))) == [[0, 1, 2, 3]]


def test_a_forward_of_a_layer_s_own_is_put_back() -> None:
    layers, _, lockstep = made(2)

    def own(value: list[int]) -> list[int]:
        return [*value, -1]

    layers[0].__dict__["forward"] = own
    assert lockstep.run_calls(through(layers, (0, 1))) == [[-1, 1]]
    assert layers[0].__dict__["forward"] is own


def test_calls_see_what_is_set_and_not_what_another_sets() -> None:
    layers, _, lockstep = made(1)
    SETTING.set("all")

    def call(number: int) -> Callable[[], Any]:
        def compute() -> Any:
            before = SETTING.get()
            SETTING.set(str(number))
            layers[0]([])
            return before, SETTING.get()

        return compute

    assert lockstep.run_calls([call(1), call(2)]) == [("all", "1"), ("all", "2")]
    assert SETTING.get() == "all"


def test_calls_that_change_whether_gradients_are_wanted_do_not_change_it_for_others() -> None:
    layers, _, lockstep = made(2)

    def compute() -> bool:
        with torch.inference_mode():
            layers[0]([])
        layers[1]([])
        return torch.is_inference_mode_enabled()

    assert lockstep.run_calls([compute] * 3) == [True] * 3
    assert not torch.is_inference_mode_enabled()


def test_who_is_told_of_layers_hears_of_each_while_it_is_there_and_all_have_passed() -> None:
    layers, record_set, lockstep = made()
    heard: list[tuple[int, bool]] = []

    def passed(layer: int) -> None:
        heard.append((layer, layers[layer].there))

    assert lockstep.run_calls(through(layers, *[range(4)] * 3), passed) == [[0, 1, 2, 3]] * 3
    assert heard == [(number, True) for number in range(4)]

    def refuse(layer: int) -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        lockstep.run_calls(through(layers, *[range(4)] * 3), refuse)
    assert not any(layer.there for layer in layers)
    record_set.broken = 2  # whoever did not pass is not told of
    heard.clear()
    with pytest.raises(OSError, match="gone"):
        lockstep.run_calls(through(layers, range(4)), passed)
    assert [layer for layer, _ in heard] == [0, 1]
    assert not any("forward" in layer.__dict__ for layer in layers)
