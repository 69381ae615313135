"""Which halves are on the device together, who gives way, and whose the device is."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from flows.serving.device_scheduler import DeviceScheduler
from stages.process.lock import CPU_LOCK, try_hold


@dataclass(eq=False)
class Tenant:
    """One that leaves at once when it is asked to."""

    name: str
    peak_bytes: int
    residence: DeviceScheduler
    idle: bool = True
    left: list[str] = field(default_factory=list)

    def leave(self) -> None:
        self.left.append(self.name)
        self.residence.release(self)


def residence() -> DeviceScheduler:
    return DeviceScheduler("cpu", 100, lambda text: None)


def test_all_that_may_be_there_together_are_kept_to_the_budget() -> None:
    async def go() -> None:
        place = residence()
        small = [Tenant(name, size, place) for name, size in (("a", 30), ("b", 20), ("c", 20))]
        large = Tenant("d", 90, place)
        place.users += [*small, large]
        for tenant in small:
            await place.acquire(tenant)
        assert not any(tenant.left for tenant in small)
        rooms = [place.granted_bytes(tenant) for tenant in small]
        assert rooms == [40, 30, 30]
        await place.acquire(large)
        assert all(tenant.left for tenant in small)
        assert place.granted_bytes(large) == 100

    asyncio.run(go())


def test_one_at_work_finishes_its_turn_and_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    async def go() -> None:
        place = residence()
        first, second = Tenant("a", 60, place, idle=False), Tenant("b", 50, place)
        await place.acquire(first)
        coming = asyncio.create_task(place.acquire(second))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not coming.done()
        assert not place.must_yield(), "its turn is not over"
        monkeypatch.setattr("flows.serving.device_scheduler.TURN_SECONDS", 0.0)
        assert place.must_yield(), "it is to begin nothing more"
        first.idle = True
        place.recheck()
        await asyncio.wait_for(coming, 1)
        assert first.left == ["a"]
        assert place.granted_bytes(second) == 100
        assert not place.must_yield()

    asyncio.run(go())


def test_one_larger_than_the_budget_comes_alone() -> None:
    async def go() -> None:
        place = residence()
        large = Tenant("a", 500, place)
        await asyncio.wait_for(place.acquire(large), 1)

    asyncio.run(go())


def test_a_device_is_waited_for_and_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    monkeypatch.setenv(CPU_LOCK, str(path))
    monkeypatch.setattr("flows.serving.device_scheduler.POLL_SECONDS", 0.01)

    async def go() -> None:
        said: list[str] = []
        place = DeviceScheduler("cpu", 100, said.append)
        other = try_hold(path)
        assert other is not None
        tenant = Tenant("a", 10, place)
        coming = asyncio.create_task(place.acquire(tenant))
        await asyncio.sleep(0.05)
        assert not coming.done()
        assert place.held_by.startswith("process ")
        assert said == [f"waiting for CPU, used by {place.held_by}"]
        other.close()
        await asyncio.wait_for(coming, 5)
        assert place.held_by == ""
        assert try_hold(path) is None
        tenant.leave()
        again = try_hold(path)
        assert again is not None, "a batch job has its turn"
        again.close()

    asyncio.run(go())
