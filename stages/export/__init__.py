"""Writes quantized checkpoints and checkpoints with ONNX graphs, and compares them with their
originals."""

from stages.export.jobs import CalibrateJob, ExportJob, FeaturesJob, GraphJob, JudgeJob
from stages.process.job import StageSpec

STAGE = StageSpec(
    name="export",
    job=ExportJob,
    of_media=False,
    output_version=1,
    entry="stages.export.run:run",
    verb="exporting",
    counts="",
)
TRACE = StageSpec(
    name="trace",
    job=GraphJob,
    of_media=False,
    output_version=1,
    entry="stages.export.graphs.run:run",
    verb="making graphs",
    counts="",
)
COMPARE = StageSpec(
    name="compare",
    reads=("features",),
    job=FeaturesJob,
    of_media=False,
    output_version=1,
    entry="stages.export.compare:run",
    verb="comparing features",
    counts="",
)
CALIBRATE = StageSpec(
    name="calibrate",
    reads=("captions",),
    part="language",
    job=CalibrateJob,
    of_media=False,
    output_version=1,
    entry="stages.export.calibrate:run",
    verb="calibrating",
    counts="",
)
JUDGE = StageSpec(
    name="judge",
    reads=("captions",),
    part="language",
    job=JudgeJob,
    of_media=False,
    output_version=1,
    entry="stages.export.logit_agreement:run",
    verb="judging",
    counts="",
)
