"""Items are prepared by several threads in order, batches are prefetched and written behind, and no
failure is lost."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from stages.models.encoding.run import Readers
from stages.models.prefetch import BEHIND, PREFETCH_BATCHES, Prefetched, write_behind
from stages.models.processors.loading import UNPAIRED

SECONDS = 10.0


def test_batches_are_read_while_another_is_used() -> None:
    read: list[int] = []
    third = threading.Event()

    def note(batch: int) -> int:
        read.append(batch)
        if len(read) == 1 + PREFETCH_BATCHES:
            third.set()
        return batch * 10

    given = Prefetched(range(5), note)
    assert next(given) == 0
    assert third.wait(SECONDS)
    assert list(given) == [n * 10 for n in range(1, 5)]
    assert read == [0, 1, 2, 3, 4]


def test_what_comes_while_the_disk_is_busy_is_written_at_once_and_in_order() -> None:
    busy, continues_prompt, written = threading.Event(), threading.Event(), list[list[int]]()

    def write(made: list[int]) -> None:
        busy.set()
        assert continues_prompt.wait(SECONDS)
        written.append(made)

    with write_behind(write) as later:
        later(0)
        assert busy.wait(SECONDS)
        for number in range(1, BEHIND):
            later(number)
        assert written == []
        continues_prompt.set()
    assert written == [[0], list(range(1, BEHIND))]


def test_no_more_than_a_few_batches_wait_for_the_disk() -> None:
    most = 0

    def write(made: list[int]) -> None:
        nonlocal most
        most = max(most, len(made))

    with write_behind(write) as later:
        for number in range(100):
            later(number)
    assert most <= BEHIND


@pytest.mark.parametrize("more", [0, 1, 2 * BEHIND])
def test_what_failed_behind_is_raised_and_nothing_is_written_after_it(more: int) -> None:
    written: list[int] = []

    def write(made: list[int]) -> None:
        if 0 in made:
            raise OSError("the disk is full")
        written.extend(made)

    with pytest.raises(OSError, match="full"), write_behind(write) as later:
        for number in range(1 + more):
            later(number)
    assert written == []


def test_what_failed_behind_ends_what_the_caller_waits_for() -> None:
    arrives = threading.Event()

    def batches() -> Iterator[int]:
        yield 0
        assert arrives.wait(SECONDS)

    def write(made: list[int]) -> None:
        raise OSError("the disk is full")

    with (
        pytest.raises(OSError, match="full"),
        Prefetched(batches(), int) as ready,
        write_behind(write, on_error=ready.close) as later,
    ):
        for number in ready:
            later(number)
    assert not arrives.is_set()
    arrives.set()


def test_what_failed_behind_is_refused_at_once_and_writing_goes_on() -> None:
    written: list[int] = []
    refused: list[tuple[list[int], str]] = []
    heard = threading.Event()

    def write(made: list[int]) -> None:
        if 0 in made:
            raise OSError("the disk is full")
        written.extend(made)

    def refuse(made: list[int], error: Exception) -> None:
        refused.append((made, str(error)))
        heard.set()

    with write_behind(write, refuse) as later:
        later(0)
        assert heard.wait(SECONDS), "nobody heard of it before the next batch"
        later(1)
    assert refused == [([0], "the disk is full")] and written == [1]


def test_what_was_handed_over_is_written_when_the_caller_fails() -> None:
    written: list[int] = []
    with pytest.raises(ValueError, match="caller"), write_behind(written.extend) as later:
        later(1)
        raise ValueError("the caller's own")
    assert written == [1]


def test_who_fails_ends_though_the_next_batch_never_comes() -> None:
    request, continues_prompt = threading.Event(), threading.Event()

    def message() -> Iterator[int]:
        yield 0
        request.set()
        continues_prompt.wait(6 * SECONDS)

    def work() -> None:
        given = Prefetched(message(), lambda batch: batch)
        with contextlib.suppress(ValueError), given:
            for _ in given:
                assert request.wait(SECONDS)
                raise ValueError

    working = threading.Thread(target=work, daemon=True)
    working.start()
    working.join(SECONDS)
    ended = not working.is_alive()
    continues_prompt.set()
    assert ended, "it waits for what is told next"


class Part:
    """Stands for a processor: it notes whether two threads use it at once."""

    def __init__(self) -> None:
        self.tokenizer: Any = ["words"]
        self.used = False

    def use(self, wait: Callable[[], object]) -> None:
        assert not self.used, "two threads use one processor"
        self.used = True
        wait()
        self.used = False


def each_of(readers: Readers[int, Any], count: int) -> list[Any]:
    begun = [(item, readers.begin(item)) for item in range(count)]
    return [readers.finish(item, future) for item, future in begun]


@pytest.mark.parametrize("count", [1, 3])
def test_readers_prepare_at_once_in_order_with_a_processor_each(count: int) -> None:
    together = threading.Barrier(count)

    def prepare(part: Part, item: int) -> tuple[int, int]:
        part.use(lambda: together.wait(SECONDS))
        return item, id(part)

    with Readers(prepare, Part(), count, reads_text=False) as readers:
        made = each_of(readers, 4 * count)
    assert [item for item, _ in made] == list(range(4 * count))
    assert len({part for _, part in made}) == count


@pytest.mark.parametrize("reads_text", [False, True])
def test_readers_share_a_tokenizer_only_if_nothing_calls_it(reads_text: bool) -> None:
    together = threading.Barrier(2)

    def prepare(part: Part, item: int) -> Any:
        together.wait(SECONDS)
        return part.tokenizer, part in UNPAIRED

    first = Part()
    UNPAIRED.add(first)
    with Readers(prepare, first, 2, reads_text=reads_text) as readers:
        made = each_of(readers, 2)
    (one, known), (other, also_known) = made
    assert (one is not other) == reads_text
    assert known and also_known


def test_readers_share_a_processor_that_cannot_be_copied(caplog: pytest.LogCaptureFixture) -> None:
    part = Part()
    part.tokenizer = threading.Lock()  # no lock can be copied

    def prepare(part: Part, item: int) -> int:
        part.use(int)
        return item

    with Readers(prepare, part, 3, reads_text=True) as readers:
        assert each_of(readers, 6) == list(range(6))
    assert "cannot be copied" in caplog.text


def test_readers_out_of_memory_prepare_one_at_a_time_and_retry() -> None:
    together, lock = threading.Barrier(2), threading.Lock()
    active, most, tried = 0, 0, list[int]()

    def prepare(part: Part, item: int) -> int:
        nonlocal active, most
        with lock:
            active, first = active + 1, item not in tried
            tried.append(item)
            most = max(most, active) if 2 in tried else most
        try:
            if item < 2 and first:
                together.wait(SECONDS)
                raise MemoryError("Unable to allocate 2.00 GiB for an array")
            return item
        finally:
            with lock:
                active -= 1

    with Readers(prepare, Part(), 2, reads_text=False) as readers:
        assert each_of(readers, 2) == [0, 1]
        assert each_of(readers, 8) == list(range(8))
    assert sorted(tried[:4]) == [0, 0, 1, 1]
    assert most == 1


def test_readers_out_of_memory_alone_fails() -> None:
    def prepare(part: Part, item: int) -> int:
        raise MemoryError("Unable to allocate 2.00 GiB for an array")

    readers = Readers[int, Any](prepare, Part(), 2, reads_text=False)
    with readers, pytest.raises(MemoryError, match="Unable to allocate"):
        each_of(readers, 1)


def test_readers_raise_what_the_item_raises() -> None:
    def prepare(part: Part, item: int) -> int:
        if item == 1:
            raise ValueError("no image")
        return item

    with Readers(prepare, Part(), 2, reads_text=False) as readers:
        begun = [readers.begin(item) for item in range(3)]
        assert readers.finish(0, begun[0]) == 0
        with pytest.raises(ValueError, match="no image"):
            readers.finish(1, begun[1])
        assert readers.finish(2, begun[2]) == 2


def test_readers_leave_torch_threads_of_the_encoder() -> None:
    before = torch.get_num_threads()

    def prepare(part: Part, item: int) -> int:
        return torch.get_num_threads()

    with Readers(prepare, Part(), 2, reads_text=False) as readers:
        assert set(each_of(readers, 4)) == {1}
    assert torch.get_num_threads() == before
