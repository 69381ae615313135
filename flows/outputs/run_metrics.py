"""States a run in the text format of Prometheus, as node_exporter's textfile collector reads it."""

import time
from collections.abc import Callable, Mapping

from flows.outputs.record.run_record import ENDED, RunRecord, State
from flows.outputs.run_status import StageStatus, seconds_left, stages_of
from flows.outputs.run_wording import written

STATES: tuple[State, ...] = ("running", *sorted(ENDED))
OF_RUN: Mapping[str, tuple[str, Callable[[RunRecord], float]]] = {
    "files": ("files of the run", lambda record: record.media.total),
    "files_failed": ("files that failed", lambda record: record.media.failed),
    "files_unread": ("files not read yet", lambda record: record.media.open),
    "rows": ("captions or other rows written", lambda record: written(record)[0]),
}
"""Metric of a run → its help, and what returns its value."""
OF_STAGE: Mapping[str, tuple[str, Callable[[StageStatus], float]]] = {
    "items_done": ("items of a stage done, those before this run too", lambda stage: stage.done),
    "items_failed": ("items of a stage that failed", lambda stage: stage.failed),
    "items_pending": ("items of a stage to make", lambda stage: stage.pending),
    "stage_seconds": ("seconds a stage worked in this run", lambda stage: stage.seconds),
    "host_peak_bytes": ("peak host memory of a stage", lambda stage: stage.peak_host_bytes),
    "device_peak_bytes": ("peak GPU memory of a stage", lambda stage: stage.peak_device_bytes),
}
"""Metric of a stage → its help, and what returns its value."""


def metrics_text(
    record: RunRecord | None, labels: Mapping[str, str], state: State, times: Mapping[str, float]
) -> bytes:
    """Return the metrics of a run. `labels` stand at each of them, so that the files of several
    runs can lie in one folder. `record`: None before the run has one. `times`: further metrics of
    the run, by name, in seconds or numbers."""
    from prometheus_client import CollectorRegistry, Gauge, generate_latest

    registry = CollectorRegistry()

    def add(name: str, text: str, values: Mapping[str, float], label: str = "") -> None:
        """Add a metric with one value for each value of a label, or with a single one."""
        names = [*labels, *([label] if label else [])]
        gauge = Gauge(f"penstock_run_{name}", text, names, registry=registry)
        for of_label, number in values.items():
            gauge.labels(*labels.values(), *([of_label] if label else [])).set(number)

    add("state", "1 for the state of the run", {s: s == state for s in STATES}, "state")
    for name, number in times.items():
        add(name, TIMES[name], {"": number})
    if record is not None:
        stages = stages_of(record, time.time())
        for name, (text, of_run) in OF_RUN.items():
            add(name, text, {"": of_run(record)})
        for name, (text, of_stage) in OF_STAGE.items():
            add(name, text, {stage.name: of_stage(stage) for stage in stages}, "stage")
        if (left := seconds_left(record, stages)) is not None:
            add("seconds_left", "estimated seconds until the last stage ends", {"": left})
    return generate_latest(registry)


TIMES = {
    "start_time_seconds": "when the command began, since the epoch",
    "end_time_seconds": "when the command ended, since the epoch",
    "exit_code": "exit code of the command",
}
"""Metric that the command itself states → its help."""
