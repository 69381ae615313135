"""Keeps the verdicts of checks of the user's hardware in the store, and says which of them count.

A check computes on the user's device what no test of Penstock can: whether two ways to the same
numbers agree there, or whether the device computes at all.

1. Every check is declared here. Its verdict is about something, such as a half in some precision.
2. A verdict is stored with the device, the driver and the libraries that it was made with.
3. It counts if all of these, and the version of the check, are as they are now. Else it is void:
   nothing reads it, and the check runs again.
4. If two processes make the same check at once, the verdict that is stored first counts for both.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from artifacts.digests import digest_of
from artifacts.disk.json_records import read_record
from artifacts.packages import version_of
from artifacts.records.packs import Record, RecordSet
from artifacts.records.store import Store
from stages.process.device import device_capability, device_model, driver_version
from stages.process.host_memory import cpu_line

KIND = "checks"
"""Kind of the records with verdicts. All are in one cache namespace."""
LIBRARIES = ("torch", "transformers", "bitsandbytes", "onnxruntime-gpu", "llama-cpp-python")
"""Packages that compute. A verdict is void if the version of one changes."""


class Check(NamedTuple):
    """A check, with a version that is raised when the check is made differently."""

    name: str
    version: int = 1


PASSES = Check("passes")
"""Whether features depend on what passes the vision half with them (models/encoding/batch.py)."""
WINDOWS = Check("windows")
"""Which windows of an encoder may share one call of attention (models/halves/boundary.py)."""
FP16 = Check("fp16")
"""Whether vectors in fp16 are close enough to those in fp32 (stages/embed/run.py)."""
ROWS = Check("rows")
"""How many rows of a decoding step do not depend on each other (inflight/slot_check.py)."""
DEVICE = Check("device")
"""Whether a GPU computes, and what its driver takes for a process (flows/core/machine)."""
CHECKS = frozenset({PASSES, WINDOWS, FP16, ROWS, DEVICE})
Facts = Mapping[str, Any]


def conditions(device: str) -> dict[str, str]:
    """Return the hardware and the versions of software on which every verdict depends."""
    driver = {} if device == "cpu" else {"driver": driver_version(device)}
    libraries = {name: version_of(name) for name in LIBRARIES}
    return {"device": hardware(device), **driver, **libraries}


def hardware(device: str) -> str:
    """Return the model of a CPU, or the model and the compute capability of a GPU."""
    if device == "cpu":
        return cpu_line("model name")
    return f"{device_model(device)} {'.'.join(map(str, device_capability(device)))}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The stored result of a check. Its key is made of the check, `about` and `made_with`."""

    check: Check
    about: Facts
    """What was checked."""
    made_with: Facts
    """The conditions under which it was made."""
    outcome: Facts
    text: str
    """What was checked and what came out, for the user."""
    time: float
    """When it was made, in seconds since the epoch."""


class Verdicts:
    """The verdicts in a store that count on one device."""

    def __init__(self, store: Store, device: str) -> None:
        self._records = RecordSet(store, KIND, digest_of([KIND, 1]))
        self._conditions = conditions(device)
        stored = {key: self._verdict(key) for key in self._records.keys()}  # noqa: SIM118
        self._verdicts = {
            key: verdict
            for key, verdict in stored.items()
            if verdict.check in CHECKS and verdict.made_with == self._conditions
        }
        self.void = len(stored) - len(self._verdicts)
        """How many were made under other conditions, or by another version of the check."""

    def __iter__(self) -> Iterator[Verdict]:
        """Yield the verdicts that count, oldest first."""
        yield from sorted(self._verdicts.values(), key=lambda verdict: verdict.time)

    def of(self, check: Check, about: Facts) -> list[Verdict]:
        """Return the verdicts of a check whose `about` holds these facts."""
        return [v for v in self if v.check == check and about.items() <= v.about.items()]

    def outcome(self, check: Check, about: Facts) -> Facts | None:
        """Return the outcome of a check; None: the check has to run."""
        verdict = self._verdicts.get(self._key(check, about))
        return None if verdict is None else verdict.outcome

    def keep(self, check: Check, about: Facts, outcome: Facts, text: str) -> Facts:
        """Store an outcome, and return the one that counts: that of another process if it was
        first. Raises EnvironmentFault."""
        facts: dict[str, Any] = {"check": check, "about": about, "made_with": self._conditions}
        verdict = Verdict(**facts, outcome=outcome, text=text, time=time.time())
        key = self._key(check, about)
        self._records.publish([Record(key=key, meta=asdict(verdict))])
        self._verdicts[key] = self._verdict(key)
        return self._verdicts[key].outcome

    def drop(self, check: Check, about: Facts) -> None:
        """Have a check run again."""
        self._verdicts.pop(key := self._key(check, about), None)
        self._records.drop([key])

    def _key(self, check: Check, about: Facts) -> str:
        return digest_of([check, about, self._conditions])

    def _verdict(self, key: str) -> Verdict:
        return read_record(Verdict, self._records.meta(key))
