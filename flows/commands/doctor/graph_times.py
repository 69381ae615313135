"""Times a model's graphs against torch, in a separate process, for `--vision-backend auto`."""

from dataclasses import replace

from artifacts.records.store import Store
from artifacts.schema import HalfName
from flows.core.checkpoint.graphs import GraphSpeed, store_speed
from flows.core.checkpoint.models import digests_in, open_model
from flows.core.job.replan import replanned_once
from flows.core.machine.budget import budget_for
from flows.core.machine.launch import Launcher, StageCall, run_with_restarts
from flows.core.options.commands import RunOptions
from flows.core.options.precision import TORCH
from stages.export import TimingJob
from stages.models.graphs.sessions import ONNX
from stages.models.half_job import HalfJob

PART: HalfName = "vision"


def time_graphs(name: str, device: str, store: Store, launcher: Launcher) -> GraphSpeed:
    """Measure the vision half of a model with torch and with its ONNX graphs, and store the result.
    Raises PenstockError."""
    return replanned_once(lambda: _timed(name, device, store, launcher), bool)


def _timed(name: str, device: str, store: Store, launcher: Launcher) -> GraphSpeed:
    config = RunOptions(sources=(), model=name, vision_backend=ONNX)
    models = [
        open_model(
            replace(config, vision_backend=backend),
            store=store,
            digests=digests_in(store),
            launcher=launcher,
            device=device,
        )
        for backend in (TORCH, ONNX)
    ]
    in_torch, by_graphs = models
    use = by_graphs.best(PART).graph
    assert use is not None
    settings = in_torch.best(PART)
    half = HalfJob(
        model=str(in_torch.folder),
        device=device,
        dtype=settings.dtype,
        precision=settings.precision,
        attention=settings.attention,
        route=in_torch.profile.route,
        extra_modules=in_torch.profile.vision.extra_modules,
        files=by_graphs.files_of([PART]),
    )
    frames = in_torch.profile.frames_per_video
    job = TimingJob(half=half, graphs=use.backend, frames_per_video=frames)
    call = StageCall(
        name="time_graphs",
        job=job,
        device=device,
        log=store.local / "logs" / "time-graphs.log",
        budget=budget_for(config, device).of_stage(device),
    )
    seconds = run_with_restarts(launcher, call).notes["seconds"]
    return store_speed(device, use.digest, use.provider, seconds)
