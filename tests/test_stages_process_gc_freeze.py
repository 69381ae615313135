"""What is imported is not looked through for garbage while it is imported."""

import gc

import pytest

from stages.process.gc_freeze import gc_frozen


def test_garbage_waits_until_the_block_ends_however_it_ends() -> None:
    with pytest.raises(ImportError), gc_frozen():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()


def test_an_inner_block_does_not_end_an_outer_one() -> None:
    with gc_frozen():
        with gc_frozen():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
