"""The order in which examples are trained on: all of them once an epoch, those alike together, and
the same for one seed whoever asks and when."""

from collections import Counter

import pytest

from stages.tune.order import Order

COUNT, BATCH = 50, 4
ALIKE = [at % 3 for at in range(COUNT)]


@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_an_epoch_has_each_once(epoch: int) -> None:
    order = Order(ALIKE, BATCH, seed=1)
    steps = [order.of_step(epoch * order.epoch_steps + at) for at in range(order.epoch_steps)]
    assert Counter(at for step in steps for at in step) == Counter(range(COUNT))
    assert max(map(len, steps)) == BATCH


def test_most_steps_are_of_examples_that_are_alike() -> None:
    order = Order(ALIKE, BATCH, seed=1)
    kinds = [len({ALIKE[at] for at in order.of_step(step)}) for step in range(order.epoch_steps)]
    assert kinds.count(1) >= 0.7 * len(kinds)


def test_it_hangs_on_seed_and_step_alone() -> None:
    one, other = Order(ALIKE, BATCH, seed=1), Order(ALIKE, BATCH, seed=1)
    later = [one.of_step(step) for step in range(40)]
    assert other.of_step(31) == later[31] and other.of_step(2) == later[2]
    assert [Order(ALIKE, BATCH, seed=2).of_step(step) for step in range(40)] != later
    epoch = one.epoch_steps
    assert later[:epoch] != later[epoch : 2 * epoch]


def test_few_examples_make_short_steps() -> None:
    order = Order(["a"], BATCH, seed=0)
    assert order.epoch_steps == 1 and order.of_step(7) == [0]
